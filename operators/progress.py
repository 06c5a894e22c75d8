"""What a person who waits for a local run sees: one event per task, one per training epoch."""

import json
import os
import time
from typing import Any

EVENTS_FILE = "WINBACK_EVENTS_FILE"  # set by the commands; without it nothing is written
FAILURE = "failure"  # XCom key under which a failed task leaves its error for finish_run


def report(event: str, **details: Any) -> None:
    """Append one event as a JSON line to the file that a waiting command reads."""
    path = os.environ.get(EVENTS_FILE)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "at": time.time(), **details}) + "\n")


def task_started(context: Any) -> None:
    """Airflow's ``on_execute_callback``."""
    report("started", **_task(context))


def task_succeeded(context: Any) -> None:
    """Airflow's ``on_success_callback``."""
    report("succeeded", **_task(context))


def _task(context: Any) -> dict[str, Any]:
    """Which task, and which part of it where it is mapped (from 0; −1: it is not)."""
    task = context["ti"]
    return {"task": task.task_id, "part": getattr(task, "map_index", -1)}


def task_failed(context: Any) -> None:
    """Airflow's ``on_failure_callback`` and ``on_retry_callback``."""
    error = context.get("exception")
    kind = type(error).__name__
    failure = {"task": context["ti"].task_id, "kind": kind, "error": str(error)}
    report("failed", **failure)
    context["ti"].xcom_push(key=FAILURE, value=failure)
