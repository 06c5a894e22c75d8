"""Mathematics on arrays: no Airflow, no database, no clock."""
