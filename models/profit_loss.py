"""What the profit Transformer minimises: negative log likelihoods of buying, margin, redeeming."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from winback.models.profit import Inputs, ProfitNetwork
from winback.models.profit_calibration import MARGIN, PURCHASE, REDEEM, ROWS_FLOOR, Redemption
from winback.models.profit_data import NO_COUPON, Booleans, Integers, ProfitData


@dataclass(frozen=True)
class Targets:
    """What happened, on the network's device."""

    coupon: Tensor  # (n,)
    purchased: Tensor  # (n,) 0/1
    margin: Tensor  # (n,) in units of the mean margin
    redeemed: Tensor  # (n,) 0/1

    @classmethod
    def of(cls, data: ProfitData, margin_scale: float, device: str) -> "Targets":
        """Move the outcomes to the device once."""
        columns = (
            data.coupon.astype(np.int64),
            data.purchased.astype(np.float32),
            (data.margin / margin_scale).astype(np.float32),
            (data.cost > 0).astype(np.float32),
        )
        return cls(*(torch.from_numpy(column).to(device) for column in columns))


class ProfitLoss:
    """Mean loss of a batch.

    What ``none`` is worth is learned from rows with ``none`` alone (from all rows where those are
    too few), and the effect sees it detached: so rows with a coupon stay honest evidence of what
    the coupon changed.
    """

    def __init__(
        self, coupon_rows: Integers, has_effect: Booleans, redemption: Redemption, device: str
    ) -> None:
        is_none = np.arange(len(coupon_rows)) == NO_COUPON
        teaches_base = is_none if coupon_rows[NO_COUPON] >= ROWS_FLOOR else ~has_effect
        self.teaches_base = torch.from_numpy(teaches_base).to(device)
        self.teaches_effect = torch.from_numpy(has_effect).to(device)
        rate = torch.from_numpy(redemption.rate).float()
        self.redeem_logit = torch.logit(rate, eps=1e-4).to(device)
        self.is_mixed = device == "cuda"  # half precision pays on CUDA only

    def __call__(
        self,
        network: ProfitNetwork,
        inputs: Inputs,
        targets: Targets,
        rows: Tensor,
        hidden_category: int | None = None,
        hidden_share: float = 0.0,
    ) -> Tensor:
        """Loss per row of the batch; a share of the categories is replaced by ``hidden_category``.

        Hiding teaches the network what to make of a category that it has never seen.
        """
        tokens, days, features, survival = inputs.batch(rows)
        if hidden_category is not None:
            hidden = (torch.rand(tokens.shape, device=tokens.device) < hidden_share) & (tokens > 0)
            tokens = tokens.masked_fill(hidden, hidden_category)
        coupon = targets.coupon[rows]
        offered = self.teaches_effect[coupon]
        with torch.autocast("cuda", enabled=self.is_mixed):
            memory, visible = network.encode(tokens, days, features)
            base = network.base(memory, visible, survival)
            own, asked = memory[offered].detach(), coupon[offered][:, None]
            effect = network.effect(own, visible[offered], asked)[:, 0]
        base_losses = _outcome_losses(base, targets, rows)[self.teaches_base[coupon]]
        effect_losses = self._effect_losses(base[offered].detach(), effect, targets, rows[offered])
        total: Tensor = base_losses.sum() + effect_losses.sum()
        return total / len(rows)

    def _effect_losses(
        self, base: Tensor, effect: Tensor, targets: Targets, rows: Tensor
    ) -> Tensor:
        redeem: Tensor = functional.binary_cross_entropy_with_logits(
            self.redeem_logit[targets.coupon[rows]] + effect[:, REDEEM],
            targets.redeemed[rows],
            reduction="none",
        )
        outcome = _outcome_losses(base + effect[:, :REDEEM], targets, rows)
        return outcome + targets.purchased[rows] * redeem


def _outcome_losses(linear: Tensor, targets: Targets, rows: Tensor) -> Tensor:
    """(rows,) Bernoulli for buying, quasi-Poisson for the margin of those who bought.

    The quasi-Poisson loss estimates a mean without bias, whatever the tail, and takes the negative
    margins that refunds leave.
    """
    bought, log_margin = targets.purchased[rows], linear[:, MARGIN]
    purchase: Tensor = functional.binary_cross_entropy_with_logits(
        linear[:, PURCHASE], bought, reduction="none"
    )
    return purchase + bought * (log_margin.exp() - targets.margin[rows] * log_margin)
