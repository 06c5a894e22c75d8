"""The profit Transformer: a customer is encoded once, then asked once per coupon.

Days with a purchase are tokens (category + position), the standardised features are one more; the
candidate coupon is a query that attends to them. Three parts are learned apart and multiplied:
P(buy), the margin given a purchase, and P(redeem) given a purchase. The survival model enters
once, as logit P(purchase) under P(buy). A coupon's forecast is the forecast for ``none`` plus an
effect that starts at zero, is kept small, and is used only as far as later dates confirm it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from winback.models.calibration import logit, sigmoid
from winback.models.errors import DataError
from winback.models.profit_calibration import (
    MARGIN,
    PURCHASE,
    REDEEM,
    Calibration,
    Redemption,
)
from winback.models.profit_config import ProfitConfig
from winback.models.profit_data import (
    NO_COUPON,
    SEQUENCE_DAYS,
    Floats,
    Forecast,
    Integers,
    ProfitSchema,
    check_inputs,
)

_CLIP = 5.0  # standard deviations; beyond them a feature says no more
_LOG_MARGIN = 5.0  # a forecast stays below e⁵ ≈ 150 times the mean margin
_SCORING_ROWS = 4096  # rows encoded at a time


class Attention(nn.Module):
    """Multi-head attention of queries to a memory, with padding masked out."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, query: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        q = self._split(self.query(query))
        k, v = (self._split(part) for part in self.key_value(memory).chunk(2, dim=-1))
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible[:, None, None, :]
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, d = x.shape
        return x.view(batch, tokens, self.heads, d // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm Transformer block: queries attend to a memory, then a feed-forward layer."""

    def __init__(self, config: ProfitConfig) -> None:
        super().__init__()
        d = config.d_model
        self.before_attention, self.before_feed_forward = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, config.heads)
        self.feed_forward = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor | None, visible: Tensor) -> Tensor:
        query = self.before_attention(x)
        memory = query if memory is None else memory
        x = x + self.dropout(self.attention(query, memory, visible))
        out: Tensor = x + self.dropout(self.feed_forward(self.before_feed_forward(x)))
        return out


class ProfitNetwork(nn.Module):
    """Encoder over purchase days and features, coupon queries, heads for base and effect."""

    def __init__(self, config: ProfitConfig, schema: ProfitSchema, inputs: int) -> None:
        super().__init__()
        d = config.d_model
        self.category = nn.Embedding(schema.unseen_category + 1, d, padding_idx=0)
        self.position = nn.Embedding(SEQUENCE_DAYS, d)
        self.features = nn.Sequential(nn.Linear(inputs, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.count = nn.Linear(d, d, bias=False)
        self.encoder = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.memory_norm = nn.LayerNorm(d)
        self.question = nn.Parameter(0.1 * torch.randn(d))
        self.coupon = nn.Embedding(len(schema.coupons), d)
        self.base_decoder, self.effect_decoder = Block(config), Block(config)
        self.base_norm, self.effect_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        base_out = nn.Linear(d, 2)
        self.base_head = nn.Sequential(nn.Linear(2 * d, d), nn.GELU(), base_out)
        self.effect_head = nn.Linear(d, 3)
        self.survival = nn.Parameter(torch.ones(1))  # weight of logit P(purchase)
        for start_at_zero in (base_out, self.effect_head):
            nn.init.zeros_(start_at_zero.weight)
            nn.init.zeros_(start_at_zero.bias)
        nn.init.normal_(self.coupon.weight, std=0.1)

    def encode(self, tokens: Tensor, days: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Memory (batch, 1 + L, d) and which of it is visible (batch, 1 + L)."""
        is_bought = tokens > 0
        history = self.category(tokens) + self.position(days)
        # Attention averages and cannot count: the sum tells how often and how lately.
        total = self.count((history * is_bought.unsqueeze(-1)).sum(dim=1))
        summary = (self.features(features) + total).unsqueeze(1)
        x = torch.cat([summary, history], dim=1)  # (batch, 1 + L, d)
        visible = functional.pad(is_bought, (1, 0), value=True)
        for block in self.encoder:
            x = block(x, None, visible)
        return self.memory_norm(x), visible

    def base(self, memory: Tensor, visible: Tensor, survival: Tensor) -> Tensor:
        """(batch, 2) with ``none``: logit P(buy) and log margin, in units of the mean margin.

        Args:
            memory, visible: from ``encode``.
            survival: (batch,) logit P(purchase).
        """
        none = torch.full((len(memory), 1), NO_COUPON, device=memory.device)
        answer = self.base_norm(self.base_decoder(self._query(none), memory, visible))[:, 0]
        head: Tensor = self.base_head(torch.cat([answer, memory[:, 0]], dim=-1)).float()
        purchase = self.survival * survival + head[:, PURCHASE]
        return torch.stack([purchase, head[:, MARGIN].clamp(max=_LOG_MARGIN)], dim=-1)

    def effect(self, memory: Tensor, visible: Tensor, coupons: Tensor) -> Tensor:
        """(batch, q, 3): what each coupon asked about, (batch, q), changes; 0 for ``none``."""
        answers = self.effect_decoder(self._query(coupons), memory, visible)
        effect: Tensor = self.effect_head(self.effect_norm(answers)).float()
        return effect * (coupons != NO_COUPON).unsqueeze(-1)

    def _query(self, coupons: Tensor) -> Tensor:
        query: Tensor = self.question + self.coupon(coupons)  # (batch, q, d)
        return query


@dataclass(frozen=True)
class Scaler:
    """Standardises features as they are and as signed logarithms; unknown = mean + indicator."""

    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, features: Floats) -> "Scaler":
        """Mean and standard deviation of the 2F columns, ignoring NaN."""
        columns = np.ma.masked_invalid(_with_logarithms(features))
        scale = columns.std(axis=0).filled(0.0)
        return cls(columns.mean(axis=0).filled(0.0), np.where(scale > 1e-9, scale, 1.0))

    def transform(self, features: Floats) -> NDArray[np.float32]:
        """(n, F) to (n, 3F): standardised, standardised logarithms, indicators of unknown."""
        z = np.clip((_with_logarithms(features) - self.mean) / self.scale, -_CLIP, _CLIP)
        return np.hstack([np.nan_to_num(z, nan=0.0), np.isnan(features)]).astype(np.float32)


def _with_logarithms(features: Floats) -> Floats:
    return np.hstack([features, np.sign(features) * np.log1p(np.abs(features))])


@dataclass(frozen=True)
class Inputs:
    """What the network reads, on its device: L = most purchase days of any row."""

    tokens: Tensor  # (n, L) category ids of the purchase days, oldest first, then 0
    days: Tensor  # (n, L) their positions in the 30 days
    length: Tensor  # (n,) purchase days
    features: Tensor  # (n, inputs)
    survival: Tensor  # (n,) logit P(purchase)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, days, features and survival of some rows, trimmed to their longest."""
        longest = int(self.length[rows].max())
        return (
            self.tokens[rows, :longest],
            self.days[rows, :longest],
            self.features[rows],
            self.survival[rows],
        )


def pack_sequence(sequence: Integers, unseen: int) -> tuple[Integers, Integers, Integers]:
    """Keep purchase days only: tokens (n, L), their positions (n, L), lengths (n,).

    Most days are empty, and a position says as much as the empty days before it: attention over
    a fifth of the tokens.
    """
    length = (sequence > 0).sum(axis=1)
    days = np.argsort(sequence == 0, axis=1, kind="stable")[:, : length.max(initial=0)]
    return np.minimum(np.take_along_axis(sequence, days, axis=1), unseen), days, length


@dataclass(frozen=True)
class ProfitModel:
    """A trained network with everything that turns its output into money."""

    schema: ProfitSchema
    config: ProfitConfig
    network: ProfitNetwork
    scaler: Scaler
    redemption: Redemption
    calibration: Calibration
    coupon_rows: Integers  # (A,) training rows per coupon; a coupon without any has no effect
    training: dict[str, Any]  # how it was trained: epochs, dates, losses (JSON-able)

    def forecast(self, sequence: Integers, features: Floats, p_purchase: Floats) -> Forecast:
        """Forecast the next window of n customers under each of the A coupons.

        A coupon with too few training rows is forecast like ``none`` (no effect is invented); its
        cost is still P(buy) × P(redeem) × mean redeemed cost, pooled over the other coupons.

        Args:
            sequence: (n, 30) category ids, oldest day first.
            features: (n, F), NaN = unknown.
            p_purchase: (n,) the survival model's P(at least one purchase in the window).

        Raises:
            DataError: shapes that differ from the schema, infinities, probabilities outside [0, 1].
        """
        check_inputs(self.schema, sequence, features, p_purchase)
        inputs = make_inputs(self.schema, self.scaler, sequence, features, p_purchase)
        with torch_threads(self.config.threads):
            base, effect = network_outputs(self.network, inputs, len(self.schema.coupons))
        return self.price(self.calibration.base(base), self.calibration.effect(effect))

    def price(self, base: Floats, effect: Floats) -> Forecast:
        """Turn base (n, 2) and effects (n, A, 3) into probabilities and money."""
        linear = base[:, None, :] + effect[..., :REDEEM]
        purchase = sigmoid(linear[..., PURCHASE])
        margin = self.calibration.margin_scale * np.exp(linear[..., MARGIN])
        level = logit(self.redemption.rate) + self.calibration.redeem_level
        redeem = sigmoid(level + effect[..., REDEEM])
        return Forecast(
            purchase=purchase,
            margin=purchase * margin + (1 - purchase) * self.calibration.refunds,
            cost=purchase * redeem * self.redemption.cost,
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Weights by name, on the CPU: for safetensors."""
        return cpu_copy(self.network)

    def to_metadata(self) -> dict[str, Any]:
        """Everything else, JSON-able."""
        return {
            "schema": self.schema.to_dict(),
            "config": asdict(self.config),
            "scaler": _to_lists(self.scaler),
            "redemption": _to_lists(self.redemption),
            "calibration": _to_lists(self.calibration),
            "coupon_rows": self.coupon_rows.tolist(),
            "training": self.training,
        }

    @classmethod
    def from_parts(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> "ProfitModel":
        """Rebuild from ``to_tensors`` and ``to_metadata``, on the CPU.

        Raises:
            DataError: weights that do not belong to the metadata.
        """
        schema = ProfitSchema.from_dict(metadata["schema"])
        config = ProfitConfig(**metadata["config"])
        network = ProfitNetwork(config, schema, input_width(schema))
        try:
            network.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise DataError(f"the weights do not fit the model's metadata: {error}") from error
        return cls(
            schema=schema,
            config=config,
            network=network.eval(),
            scaler=Scaler(**_from_lists(metadata["scaler"])),
            redemption=Redemption(**_from_lists(metadata["redemption"])),
            calibration=Calibration(**_from_lists(metadata["calibration"])),
            coupon_rows=np.array(metadata["coupon_rows"], dtype=np.int64),
            training=dict(metadata["training"]),
        )


def input_width(schema: ProfitSchema) -> int:
    """Columns after scaling: features and logit P(purchase), three each."""
    return 3 * (len(schema.features) + 1)


def scaler_columns(features: Floats, p_purchase: Floats) -> Floats:
    """(n, F + 1): the features and logit P(purchase), before scaling."""
    return np.column_stack([features, logit(p_purchase)])


def make_inputs(
    schema: ProfitSchema,
    scaler: Scaler,
    sequence: Integers,
    features: Floats,
    p_purchase: Floats,
    device: str = "cpu",
) -> Inputs:
    """Pack and scale the arrays, and move them to the device once."""
    tokens, days, length = pack_sequence(sequence, schema.unseen_category)
    arrays = (
        tokens.astype(np.int32),
        days.astype(np.int32),
        length.astype(np.int32),
        scaler.transform(scaler_columns(features, p_purchase)),
        logit(p_purchase).astype(np.float32),
    )
    return Inputs(*(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays))


@torch.no_grad()
def network_outputs(network: ProfitNetwork, inputs: Inputs, coupons: int) -> tuple[Floats, Floats]:
    """Base (n, 2) and effects (n, A, 3) of all rows: one encoding per row, A queries."""
    network.eval()
    n, device = len(inputs.length), inputs.length.device
    base, effect = torch.empty(n, 2), torch.empty(n, coupons, 3)
    asked = torch.arange(coupons, device=device)
    for rows in scoring_batches(inputs):
        tokens, days, features, survival = inputs.batch(rows)
        memory, visible = network.encode(tokens, days, features)
        base[rows.cpu()] = network.base(memory, visible, survival).cpu()
        coupons_asked = asked.expand(len(rows), -1)
        effect[rows.cpu()] = network.effect(memory, visible, coupons_asked).cpu()
    return base.double().numpy(), effect.double().numpy()


def scoring_batches(inputs: Inputs) -> Iterator[Tensor]:
    """Row indices in batches of similar length, so that little padding is computed."""
    order = torch.argsort(inputs.length, stable=True)
    yield from (rows for rows in torch.split(order, _SCORING_ROWS) if len(rows))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use ``count`` CPU threads inside, the former number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_copy(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU."""
    return {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}


def _to_lists(value: Scaler | Redemption | Calibration) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(value).items()}


def _from_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: np.array(v) if isinstance(v, list) else v for k, v in values.items()}
