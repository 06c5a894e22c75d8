"""The process that trains: reads its run on standard input, prints one JSON event per line."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from winback.models.errors import NotFittedError, WinbackError
from winback.models.profit_config import ProfitConfig
from winback.models.settings import Settings, load_settings
from winback.operators.artifacts import (
    CHECKPOINT_STATE,
    CHECKPOINT_TENSORS,
    PROFIT_MODEL,
    PROFIT_REPORT,
    PROFIT_WEIGHTS,
    SURVIVAL,
)
from winback.operators.run import Run
from winback.operators.snapshots import read_catalogue, read_schema, read_training_data

if TYPE_CHECKING:
    from winback.models.profit_training import Checkpoint, EpochReport

WAREHOUSE_URL = "WINBACK_TRAINING_WAREHOUSE_URL"  # the URL holds a password: not an argument


def train(run: Run) -> dict[str, Any]:
    """Train, write the model and its report as artifacts, and return the report.

    Raises:
        NotFittedError: BG/NBD has not been fitted in this run.
        DataError: the snapshots cannot be learned from.
    """
    from winback.models.profit_baselines import compare_with_baselines
    from winback.models.profit_training import train_profit
    from winback.models.survival import SurvivalFit

    fit = SurvivalFit.from_dict(run.artifacts.read_json(SURVIVAL))
    catalogue = read_catalogue(run)
    data = read_training_data(run, catalogue, fit)
    model = train_profit(
        data,
        read_schema(run, catalogue),
        _config(run.settings),
        on_epoch=_print_epoch,
        on_checkpoint=lambda checkpoint: _write_checkpoint(run, checkpoint),
        checkpoint=_read_checkpoint(run),
    )
    report = {
        **compare_with_baselines(model, data, seed=run.settings.seed).to_dict(),
        "training": model.training,
    }
    run.artifacts.write_tensors(PROFIT_WEIGHTS, model.to_tensors())
    run.artifacts.write_json(PROFIT_MODEL, model.to_metadata())
    run.artifacts.write_json(PROFIT_REPORT, report)
    return report


def _config(settings: Settings) -> ProfitConfig:
    return ProfitConfig(
        batch_rows=settings.batch_size,
        learning_rate=settings.learning_rate,
        max_epochs=settings.epochs,
        patience=settings.patience,
        validation_share=settings.validation_share,
        decision_days=settings.decision_days,
        max_rows=settings.max_training_rows,
        seed=settings.seed,
        device=settings.device,
    )


def _print_event(event: str, **details: Any) -> None:
    print(json.dumps({"event": event, **details}), flush=True)


def _print_epoch(epoch: "EpochReport") -> None:
    _print_event("epoch", **asdict(epoch))


def _write_checkpoint(run: Run, checkpoint: "Checkpoint") -> None:
    # The state is written last and names its tensors: killed in between, the older pair still fits.
    epoch = len(checkpoint.state["history"])
    tensors = CHECKPOINT_TENSORS.format(parity=epoch % 2)
    run.artifacts.write_tensors(tensors, checkpoint.tensors)
    run.artifacts.write_json(CHECKPOINT_STATE, {**checkpoint.state, "tensors": tensors})


def _read_checkpoint(run: Run) -> "Checkpoint | None":
    from winback.models.profit_training import Checkpoint

    with suppress(NotFittedError):  # a first try has none
        state = run.artifacts.read_json(CHECKPOINT_STATE)
        return Checkpoint(run.artifacts.read_tensors(state.pop("tensors")), state)
    return None


def main() -> int:
    """Train the run given on standard input; exit 1 with an ``error`` event if that fails."""
    order = json.load(sys.stdin)
    run = Run(
        url=os.environ[WAREHOUSE_URL],
        as_of=order["as_of"],
        run_id=order["run_id"],
        settings=load_settings(order["settings"]),
    )
    try:
        _print_event("trained", metrics=train(run))
    except WinbackError as error:
        _print_event("error", kind=type(error).__name__, message=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
