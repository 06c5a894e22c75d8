"""Airflow operators and I/O: one file per step of the daily run."""
