"""Data rules for Great Expectations, one file per checked step."""
