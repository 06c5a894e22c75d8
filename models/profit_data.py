"""What the profit model learns from and answers with: plain arrays, checked once.

n rows (a customer at a decision date), A coupons (index 0 is always ``none``), F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winback.models.errors import DataError, first_rows

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

SEQUENCE_DAYS = 30  # the contract's category_sequence
NO_COUPON = 0


@dataclass(frozen=True)
class ProfitSchema:
    """The names behind the columns and ids; stored beside the weights.

    ``categories[k]`` has id k + 1 in the sequence (0: no purchase that day); any larger id counts
    as an unseen category. ``coupons[0]`` is ``none``; ``face_values`` is in currency units.
    """

    features: tuple[str, ...]
    categories: tuple[str, ...]
    coupons: tuple[str, ...]
    face_values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.coupons or self.coupons[NO_COUPON] != "none":
            raise DataError(f"expected 'none' as first coupon, got {list(self.coupons)[:5]}")
        if len(self.face_values) != len(self.coupons):
            raise DataError(
                f"expected one face value per coupon ({len(self.coupons)}), "
                f"got {len(self.face_values)}"
            )

    @property
    def unseen_category(self) -> int:
        """The id under which every category outside the schema is read."""
        return len(self.categories) + 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``from_dict`` is the inverse."""
        return {name: list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Any]]) -> "ProfitSchema":
        """Rebuild from ``to_dict``."""
        return cls(**{field.name: tuple(values[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class ProfitData:
    """Past decisions whose window is over.

    Attributes:
        sequence: (n, 30) category id per day, oldest first, 0 = no purchase that day.
        features: (n, F) in any unit; NaN = unknown.
        coupon: (n,) index of the coupon offered.
        p_purchase: (n,) the survival model's P(at least one purchase in the window).
        day: (n,) decision date as a day number (any origin).
        purchased: (n,) at least one purchase in the window.
        margin: (n,) margin of the window in currency units, refunds included.
        cost: (n,) redeemed coupon cost of the window in currency units.
    """

    sequence: Integers
    features: Floats
    coupon: Integers
    p_purchase: Floats
    day: Integers
    purchased: Booleans
    margin: Floats
    cost: Floats

    def __len__(self) -> int:
        return len(self.coupon)

    def take(self, rows: NDArray[Any]) -> "ProfitData":
        """Rows by index or mask."""
        return ProfitData(*(getattr(self, field.name)[rows] for field in fields(self)))

    def join(self, other: "ProfitData") -> "ProfitData":
        """The rows of both, these first."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return ProfitData(*(np.concatenate(pair) for pair in pairs))

    @property
    def reward(self) -> Floats:
        """(n,) margin minus redeemed coupon cost; the contact cost is known and left out."""
        return self.margin - self.cost


@dataclass(frozen=True)
class Forecast:
    """What a window brings, per customer and coupon; each (n, A).

    Attributes:
        purchase: P(at least one purchase).
        margin: expected margin in currency units.
        cost: expected redeemed coupon cost in currency units; 0 for ``none``.
    """

    purchase: Floats
    margin: Floats
    cost: Floats

    @property
    def reward(self) -> Floats:
        """(n, A) expected margin minus expected redeemed cost."""
        return self.margin - self.cost

    def of(self, coupon: Integers) -> "Forecast":
        """(n,) each: the forecast for one given coupon per row."""
        rows = np.arange(len(coupon))
        return Forecast(
            self.purchase[rows, coupon], self.margin[rows, coupon], self.cost[rows, coupon]
        )


def check_inputs(
    schema: ProfitSchema, sequence: NDArray[Any], features: NDArray[Any], p_purchase: NDArray[Any]
) -> None:
    """Raise DataError unless the three inputs of a forecast fit the schema."""
    n = len(sequence)
    _expect_shape("sequence", sequence, (n, SEQUENCE_DAYS))
    _expect_shape("features", features, (n, len(schema.features)))
    _expect_shape("p_purchase", p_purchase, (n,))
    _expect_rows("category ids of 0 or more in sequence", (sequence >= 0).all(axis=1))
    _expect_rows("finite features (NaN = unknown)", ~np.isinf(features).any(axis=1))
    is_probability = np.logical_and(p_purchase >= 0, p_purchase <= 1)
    _expect_rows("p_purchase within [0, 1]", is_probability)


def check_data(schema: ProfitSchema, data: ProfitData) -> None:
    """Raise DataError unless shapes agree, targets are finite and something was bought."""
    check_inputs(schema, data.sequence, data.features, data.p_purchase)
    for name in ("coupon", "day", "purchased", "margin", "cost"):
        _expect_shape(name, getattr(data, name), (len(data.sequence),))
    _expect_rows("finite margin", np.isfinite(data.margin))
    _expect_rows("finite cost of 0 or more", np.isfinite(data.cost) & (data.cost >= 0))
    known = (data.coupon >= 0) & (data.coupon < len(schema.coupons))
    _expect_rows(f"coupon index below {len(schema.coupons)}", known)
    mean = data.margin[data.purchased].mean() if data.purchased.any() else None
    if mean is None or mean <= 0:
        raise DataError(
            "expected past windows with a purchase and a positive mean margin, got "
            + ("no window with a purchase" if mean is None else f"a mean margin of {mean:.2f}")
            + "; check orders.margin (or default_margin_rate) and the decision dates"
        )


def split_by_date(
    day: Integers, validation_share: float, decision_days: int
) -> tuple[Booleans, Booleans, Booleans]:
    """Split rows into (training, tuning, report) masks by decision date, windows never overlapping.

    The last ``validation_share`` of the dates are halved: the earlier ones stop and calibrate the
    training, the later ones are only reported on. With one later date both halves are that date.

    Raises:
        DataError: fewer than two decision dates whose windows do not overlap.
    """
    dates = np.unique(day)
    later = dates[len(dates) - max(1, round(validation_share * len(dates))) :]
    report_from = later[len(later) // 2]
    training = day + decision_days <= later[0]
    tuning = (day >= later[0]) & (day + decision_days <= report_from)
    report = day >= report_from
    if not training.any():
        raise DataError(
            f"expected at least two past decision dates {decision_days} days apart, got "
            f"{len(dates)}; load more history or choose a later as_of"
        )
    return training, tuning if tuning.any() else report, report


def _expect_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise DataError(f"expected {name} of shape {shape}, got {array.shape}")


def _expect_rows(what: str, good: Any) -> None:
    if not good.all():
        bad = np.flatnonzero(~good)
        raise DataError(f"expected {what}, but not so in rows {first_rows(bad.tolist())}")
