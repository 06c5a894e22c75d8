"""Step: train the profit Transformer, in a process of its own.

A forked Airflow task cannot use CUDA once its parent has touched it, and a killed task must be able
to end its training at once. The operator starts ``winback.operators.training_process``, hands the
run over on standard input, and reads one JSON event per line.
"""

import json
import os
import signal
import subprocess
import sys
from typing import Any

from airflow.sdk import Context

from winback.models import errors
from winback.operators import training_process
from winback.operators.base import WinbackOperator
from winback.operators.progress import report
from winback.operators.run import Run


class TrainProfitOperator(WinbackOperator):
    """Train on the snapshots whose window is over; weights and report become artifacts.

    A retry goes on from the last finished epoch. ``pool`` or ``queue`` keep several trainings from
    sharing one GPU.
    """

    _process: "subprocess.Popen[str] | None" = None

    def execute(self, context: Context) -> dict[str, Any]:
        self._process = start_training(self.current_run())
        last: dict[str, Any] = {}
        try:
            for line in self._process.stdout or ():
                last = json.loads(line)
                self.log.info("%s", last)
                if last["event"] == "epoch":
                    report(**last)
            return outcome(self._process.wait(), last)
        finally:
            self.on_kill()  # after an error here nobody would listen to the training any more

    def on_kill(self) -> None:
        """End the training process and whatever it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)


def start_training(run: Run) -> "subprocess.Popen[str]":
    """Start the training process in a group of its own and give it the run."""
    process = subprocess.Popen(
        [sys.executable, "-m", training_process.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, training_process.WAREHOUSE_URL: run.url},
    )
    settings = run.settings.model_dump(mode="json")
    if process.stdin is not None:
        process.stdin.write(
            json.dumps({"as_of": run.as_of, "run_id": run.run_id, "settings": settings})
        )
        process.stdin.close()
    return process


def outcome(exit_code: int, last_event: dict[str, Any]) -> dict[str, Any]:
    """The report of a finished training.

    Raises:
        WinbackError: what the process said went wrong, as the class that it named.
        RuntimeError: it ended without a word (killed, out of memory); a retry resumes it.
    """
    if exit_code == 0:
        metrics: dict[str, Any] = last_event["metrics"]
        return metrics
    if last_event.get("event") == "error":
        raise getattr(errors, last_event["kind"])(last_event["message"])
    raise RuntimeError(
        f"the training process ended with exit code {exit_code} before it was done "
        f"(last event: {last_event or 'none'}). Look for an out-of-memory kill or a traceback in "
        "this log; the next try goes on from the last finished epoch."
    )
