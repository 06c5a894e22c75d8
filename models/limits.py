"""Further limits of the allocation: per coupon, per category or segment, contacts per day.

A limit is a floor and a ceiling of what some customers' coupons add up to, in budget money or in
customers. :func:`winback.models.limited_allocation.solve_with_limits` keeps them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from winback.models.allocation import Bools, Floats, Ints, pick
from winback.models.allocation_kernels import exact_sum
from winback.models.errors import DataError, first_rows

BUDGET = "budget"  # the name that a limit may not have


@dataclass(frozen=True)
class Limit:
    """Floor and ceiling of what some customers' coupons add up to.

    Attributes:
        name: how people call it; unique.
        customers: (n,) who counts.
        coupons: (A,) which of their coupons count; `none` (the first) is never a contact.
        unit: ``spend`` counts expected budget money, ``contacts`` customers with a coupon.
        floor: at least this much, in the unit.
        ceiling: at most this much.
    """

    name: str
    customers: Bools
    coupons: Bools
    unit: Literal["spend", "contacts"]
    floor: float = 0.0
    ceiling: float = math.inf

    def weight(self, cost: Floats) -> Floats:
        """(n, A) how much each customer counts with each coupon."""
        counted = self.coupons & ((self.unit == "spend") | (np.arange(len(self.coupons)) > 0))
        unit = cost if self.unit == "spend" else np.ones_like(cost)
        weight: Floats = self.customers[:, None] * (counted * unit)
        return weight

    def used(self, coupon: Ints, cost: Floats) -> float:
        """What an allocation (n,) uses of this limit, exactly summed."""
        return float(exact_sum(pick(self.weight(cost), coupon)))


def charged_value(
    value: Floats, cost: Floats, limits: Sequence[Limit], prices: Mapping[str, float]
) -> Floats:
    """(n, A) value less what a coupon uses of the limits, at their prices (the budget's not).

    :func:`winback.models.allocation.coupons_at_price` then says which coupon each customer would
    get were they free to choose at all prices.
    """
    charged = np.array(value, np.float64)
    for limit in limits:
        price = prices.get(limit.name, 0.0)
        if price:
            charged -= price * limit.weight(cost)
    return charged


def within_ceilings(eligible: Bools, cost: Floats, limits: Sequence[Limit]) -> Bools:
    """(n, A) eligible coupons that alone exceed no ceiling."""
    fits = eligible.copy()
    for limit in limits:
        fits &= limit.weight(cost) <= limit.ceiling
    return fits


def check_limits(limits: Sequence[Limit], shape: tuple[int, ...]) -> None:
    """Refuse limits that are wrong in themselves, for (customers, coupons).

    Raises:
        DataError: names repeat, a mask is of another shape or type, floor and ceiling cross.
    """
    names = [limit.name for limit in limits]
    repeated = sorted({name for name in names if names.count(name) > 1} | ({BUDGET} & set(names)))
    if repeated:
        raise DataError(
            f"expected limits of different names other than {BUDGET}; came {first_rows(repeated)}"
        )
    for limit in limits:
        came = (*limit.customers.shape, *limit.coupons.shape)
        if came != shape or limit.customers.dtype != bool or limit.coupons.dtype != bool:
            raise DataError(
                f"expected true or false for {shape[0]} customers and {shape[1]} coupons in the "
                f"limit {limit.name}, came {limit.customers.dtype} and {limit.coupons.dtype} "
                f"of {came}"
            )
        if limit.unit not in ("spend", "contacts"):
            raise DataError(f"expected spend or contacts in {limit.name}, came {limit.unit!r}")
        if not 0 <= limit.floor <= limit.ceiling or math.isinf(limit.floor):
            raise DataError(
                f"expected 0 ≤ floor ≤ ceiling in the limit {limit.name}, came a floor of "
                f"{limit.floor:g} and a ceiling of {limit.ceiling:g}"
            )
