"""The process behind ``winback run``: one ``winback_daily`` run in this interpreter, by Airflow."""

import json
import sys
from typing import Any

from winback.operators.progress import report


def main() -> int:
    """Run the DAG with the params given as JSON on standard input; 0 if every task succeeded."""
    try:
        return _run(json.load(sys.stdin))
    except Exception as error:
        report("failed", task="start_airflow", error=str(error), kind=type(error).__name__)
        raise


def _run(params: dict[str, Any]) -> int:
    from airflow.utils.db import initdb

    initdb()

    from winback.dags.winback_daily import dag

    dag_run = dag.test(run_conf=params, logical_date=None)
    return 0 if str(dag_run.state) == "success" else 1


if __name__ == "__main__":
    sys.exit(main())
