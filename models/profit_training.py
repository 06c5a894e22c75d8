"""Training of the profit Transformer: epochs, early stopping, checkpoints, calibration.

Nothing is written here: callbacks hand out reports and checkpoints, the caller stores them.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from winback.models.profit import (
    Inputs,
    ProfitModel,
    ProfitNetwork,
    Scaler,
    cpu_copy,
    input_width,
    make_inputs,
    network_outputs,
    scaler_columns,
    scoring_batches,
    torch_threads,
)
from winback.models.profit_calibration import (
    Calibration,
    Outcomes,
    calibrate,
    coupons_with_effect,
    estimate_redemption,
)
from winback.models.profit_config import ProfitConfig
from winback.models.profit_data import (
    Booleans,
    ProfitData,
    ProfitSchema,
    check_data,
    split_by_date,
)
from winback.models.profit_loss import ProfitLoss, Targets

_BATCHES_SORTED = 8  # batches sorted by length together: little padding, still well shuffled
_WARM_UP = 0.1  # share of the steps with rising learning rate


@dataclass(frozen=True)
class EpochReport:
    """One epoch in numbers, for a progress bar and the loss curve."""

    epoch: int  # from 1
    epochs: int  # at most
    train_loss: float
    validation_loss: float
    seconds: float
    rows_per_second: float
    is_best: bool


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to go on after an epoch as if nothing had happened."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]  # JSON-able


def train_profit(
    data: ProfitData,
    schema: ProfitSchema,
    config: ProfitConfig | None = None,
    *,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> ProfitModel:
    """Train on earlier dates, stop and calibrate on later ones; the latest stay for the report.

    Args:
        data: past decisions whose window is over.
        schema: names of features, categories and coupons.
        config: the defaults suit some hundred thousand rows on a CPU.
        on_epoch: called after each epoch with its figures.
        on_checkpoint: called after each epoch with what ``checkpoint`` takes.
        checkpoint: resume from here; ignored when it belongs to other data or settings.

    Raises:
        DataError: arrays that do not fit the schema or each other, targets that are not finite,
            no purchases, fewer than two decision dates.
    """
    config = config or ProfitConfig()
    check_data(schema, data)
    data = _capped(data, config)
    split = split_by_date(data.day, config.validation_share, config.decision_days)
    trainer = Trainer(data, schema, config, split)
    if checkpoint is not None and checkpoint.state["fingerprint"] == trainer.fingerprint:
        trainer.restore(checkpoint)
    with torch_threads(config.threads):
        for report in trainer.epochs():
            if on_epoch is not None:
                on_epoch(report)
            if on_checkpoint is not None:
                on_checkpoint(trainer.checkpoint())
        return trainer.finish()


class Trainer:
    """The state of one training run."""

    def __init__(
        self,
        data: ProfitData,
        schema: ProfitSchema,
        config: ProfitConfig,
        split: tuple[Booleans, Booleans, Booleans],
    ) -> None:
        self.schema, self.config = schema, config
        self.train, self.tuning = data.take(split[0]), data.take(split[1])
        self.report_from = int(data.day[split[2]].min())
        self.fingerprint = _fingerprint(data, schema, config)
        self.device = choose_device(config.device)
        self.coupon_rows = np.bincount(self.train.coupon, minlength=len(schema.coupons))
        self.has_effect = coupons_with_effect(self.coupon_rows)
        columns = scaler_columns(self.train.features, self.train.p_purchase)
        self.scaler = Scaler.fit(columns)
        self.margin_scale = _mean_margin(self.train)
        self.redemption = estimate_redemption(self.train, schema)
        self.loss = ProfitLoss(self.coupon_rows, self.has_effect, self.redemption, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = ProfitNetwork(config, schema, input_width(schema)).to(self.device)
        self.optimizer = _optimizer(self.network, config)
        self.best = cpu_copy(self.network)
        self.best_loss, self.best_epoch = math.inf, 0
        self.history: list[dict[str, Any]] = []

    def epochs(self) -> Iterator[EpochReport]:
        """Train until max_epochs or until patience runs out."""
        inputs, targets = self._on_device(self.train)
        later_inputs, later_targets = self._on_device(self.tuning)
        while not self._is_over():
            started = time.perf_counter()
            train_loss = self._one_epoch(inputs, targets)
            validation_loss = self._loss_of(later_inputs, later_targets)
            report = self._record(train_loss, validation_loss, time.perf_counter() - started)
            yield report

    def _is_over(self) -> bool:
        epoch = len(self.history)
        return epoch >= self.config.max_epochs or epoch - self.best_epoch >= self.config.patience

    def _on_device(self, data: ProfitData) -> tuple[Inputs, Targets]:
        arrays = (data.sequence, data.features, data.p_purchase)
        inputs = make_inputs(self.schema, self.scaler, *arrays, device=self.device)
        return inputs, Targets.of(data, self.margin_scale, self.device)

    def _one_epoch(self, inputs: Inputs, targets: Targets) -> float:
        """One pass in seeded order; randomness depends on (seed, epoch) alone."""
        self.network.train()
        epoch, total = len(self.history), 0.0
        shuffle = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        batches = _training_batches(inputs.length.cpu(), self.config.batch_rows, shuffle)
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed * 1_000_003 + epoch)
            for number, rows in enumerate(batches):
                self._set_learning_rate(epoch + number / len(batches))
                total += self._step(inputs, targets, rows.to(self.device)) * len(rows)
        return total / len(inputs.length)

    def _step(self, inputs: Inputs, targets: Targets, rows: Tensor) -> float:
        unseen, share = self.schema.unseen_category, self.config.unseen_share
        loss = self.loss(self.network, inputs, targets, rows, unseen, share)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def _loss_of(self, inputs: Inputs, targets: Targets) -> float:
        self.network.eval()
        batches = scoring_batches(inputs)
        total = sum(
            float(self.loss(self.network, inputs, targets, rows)) * len(rows) for rows in batches
        )
        return total / len(inputs.length)

    def _set_learning_rate(self, epochs_done: float) -> None:
        """Linear warm-up, then cosine decay to zero over max_epochs."""
        share = epochs_done / self.config.max_epochs
        rising = min(1.0, (share + 1e-3) / _WARM_UP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rising * (1 + math.cos(math.pi * share)) / 2

    def _record(self, train_loss: float, validation_loss: float, seconds: float) -> EpochReport:
        is_best = validation_loss < self.best_loss
        report = EpochReport(
            epoch=len(self.history) + 1,
            epochs=self.config.max_epochs,
            train_loss=train_loss,
            validation_loss=validation_loss,
            seconds=seconds,
            rows_per_second=len(self.train) / max(seconds, 1e-9),
            is_best=is_best,
        )
        self.history.append(asdict(report))
        if is_best:
            self.best, self.best_loss = cpu_copy(self.network), validation_loss
            self.best_epoch = report.epoch
        return report

    def checkpoint(self) -> Checkpoint:
        """Weights, best weights, the optimizer's moments and the history so far."""
        tensors = {f"network.{k}": v for k, v in cpu_copy(self.network).items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.cpu().clone() for k, v in moments.items()}
        state = {
            "fingerprint": self.fingerprint,
            "history": list(self.history),
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
        }
        return Checkpoint(tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where ``checkpoint`` was taken."""
        self.network.load_state_dict(_below("network.", checkpoint.tensors))
        self.best = _below("best.", checkpoint.tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", checkpoint.tensors).items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.history = list(checkpoint.state["history"])
        self.best_epoch = checkpoint.state["best_epoch"]
        self.best_loss = checkpoint.state["best_loss"]

    def finish(self) -> ProfitModel:
        """Restore the best weights and calibrate them on the tuning dates."""
        network = ProfitNetwork(self.config, self.schema, input_width(self.schema))
        network.load_state_dict(self.best)
        return ProfitModel(
            schema=self.schema,
            config=self.config,
            network=network.eval(),
            scaler=self.scaler,
            redemption=self.redemption,
            calibration=self._calibrate(network),
            coupon_rows=self.coupon_rows,
            training={
                "history": self.history,
                "best_epoch": self.best_epoch,
                "rows": len(self.train),
                "tuning_rows": len(self.tuning),
                "tuning_from": int(self.tuning.day.min()),
                "report_from": self.report_from,
                "device": self.device,
            },
        )

    def _calibrate(self, network: ProfitNetwork) -> Calibration:
        data = self.train.join(self.tuning)
        inputs = make_inputs(
            self.schema, self.scaler, data.sequence, data.features, data.p_purchase
        )
        base, effect = network_outputs(network, inputs, len(self.schema.coupons))
        own = effect[np.arange(len(data)), data.coupon]
        is_late = np.arange(len(data)) >= len(self.train)
        outcomes = Outcomes(data, base, own, is_late)
        return calibrate(outcomes, self.redemption, self.has_effect, self.margin_scale)


def choose_device(wanted: str) -> str:
    """``auto`` is CUDA where there is one."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def _capped(data: ProfitData, config: ProfitConfig) -> ProfitData:
    """A seeded sample of max_rows rows, in their order; all rows where they are fewer."""
    if len(data) <= config.max_rows:
        return data
    draw = np.random.default_rng(config.seed).choice(len(data), config.max_rows, replace=False)
    return data.take(np.sort(draw))


def _mean_margin(train: ProfitData) -> float:
    """Mean margin given a purchase, at least 1 % of its mean size (refunds may outweigh few)."""
    margin = train.margin[train.purchased]
    if not len(margin):
        return 1.0
    return max(float(margin.mean()), 0.01 * float(np.abs(margin).mean()), 1e-6)


def _training_batches(length: Tensor, rows: int, shuffle: torch.Generator) -> list[Tensor]:
    """Shuffled batches whose rows have similar lengths, in shuffled order."""
    order = torch.randperm(len(length), generator=shuffle)
    batches: list[Tensor] = []
    for group in torch.split(order, rows * _BATCHES_SORTED):
        by_length = group[torch.argsort(length[group], stable=True)]
        batches += torch.split(by_length, rows)
    return [batches[i] for i in torch.randperm(len(batches), generator=shuffle).tolist()]


def _optimizer(network: ProfitNetwork, config: ProfitConfig) -> torch.optim.AdamW:
    """AdamW with strong decay on what tells coupons apart and none on norms and biases."""
    effect, matrices, rest = [], [], []
    for name, weight in network.named_parameters():
        if name.startswith(("effect_head.", "coupon.")):
            effect.append(weight)
        elif weight.ndim > 1:
            matrices.append(weight)
        else:
            rest.append(weight)
    groups = (
        {"params": effect, "weight_decay": config.effect_decay},
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    )
    # fused: one pass over all weights; a loop over 79 small tensors took a tenth of a step
    return torch.optim.AdamW(list(groups), lr=config.learning_rate, fused=True)


def _fingerprint(data: ProfitData, schema: ProfitSchema, config: ProfitConfig) -> str:
    """Same data, names and settings: same fingerprint."""
    digest = hashlib.sha256(json.dumps([schema.to_dict(), asdict(config)]).encode())
    for field in fields(data):
        digest.update(np.ascontiguousarray(getattr(data, field.name)).tobytes())
    return digest.hexdigest()


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
