"""Airflow DAGs: when and in what order."""
