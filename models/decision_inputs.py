"""What a decision starts from: the customers, what is expected of them, and the experiment."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winback.models.allocation import Bools, Floats
from winback.models.errors import DataError, first_rows
from winback.models.experiment import Ids

NONE = 0  # index of the coupon `none`

Texts = NDArray[np.object_]


@dataclass(frozen=True)
class Customers:
    """Who is decided upon, as of the decision date; all (n,).

    ``recent_contact``: got a coupon within the contact gap, or as many of late as anybody may.
    """

    customer_id: Ids
    can_contact: Bools
    has_purchased: Bools
    recent_contact: Bools


@dataclass(frozen=True)
class Outlook:
    """What is expected of each customer with each coupon; (n, A), currency, `none` first.

    Rows of customers without a purchase are not read.

    Attributes:
        margin: margin of the window, the coupon's cost not taken off.
        cost: redeemed coupon money. That of `none` (coupons from earlier offers) lowers the
            profit but takes nothing from this run's budget.
        contact_cost: (A,) cost of sending a coupon, 0 for `none`.
        future_value: γ Σ P̂(s′ | s, a) V(s′), what follows after the window.
        is_supported: enough logged decisions to judge this coupon in the customer's state.
        doubt: what is taken off a coupon's uplift when choosing, since it is only estimated; none
            if not given.
        is_proven: the log shows that coupons make customers buy
            (:meth:`winback.models.lift.Lift.is_proven`).
    """

    margin: Floats
    cost: Floats
    contact_cost: Floats
    future_value: Floats
    is_supported: Bools
    doubt: Floats | None = None
    is_proven: bool = True


@dataclass(frozen=True)
class Experiment:
    """Holdout and exploration, see :mod:`winback.models.experiment`; all shares in [0, 1].

    ``exploration_rate`` and ``exploration_budget_share`` (at most this share of the budget goes to
    exploring customers) hold where something is known; in a cold start exploration takes what the
    budget pays for, up to :data:`winback.models.experiment.MOST_DESIGNED`, unless its rate is 0.
    """

    salt: str
    holdout_share: float
    exploration_rate: float
    propensity_floor: float
    exploration_budget_share: float


@dataclass(frozen=True)
class Prospects:
    """(n, A) money of each customer with each coupon; zeros for who has not purchased.

    Attributes:
        profit: of the window, the coupon's cost and the contact taken off.
        value: Q̃ = profit + future value.
        uplift: Q̃(a) − Q̃(none), in the long run.
        cautious: what choices go by: the same less doubt; without proof what a coupon costs and
            nothing that it brings, so that none is worth giving.
        cost: budget money, 0 for `none`.
    """

    profit: Floats
    value: Floats
    uplift: Floats
    cautious: Floats
    cost: Floats


def prospects_of(outlook: Outlook, has_purchased: Bools) -> Prospects:
    """What is expected, in the figures that decisions compare."""
    read = has_purchased[:, None]
    margin, cost, future = (
        np.where(read, table, 0.0).astype(np.float64)
        for table in (outlook.margin, outlook.cost, outlook.future_value)
    )
    profit = margin - cost - outlook.contact_cost
    value = profit + future
    uplift = value - value[:, :1]
    doubt = np.zeros_like(uplift) if outlook.doubt is None else np.where(read, outlook.doubt, 0.0)
    cost[:, NONE] = 0.0
    cautious = uplift - doubt if outlook.is_proven else -(cost + outlook.contact_cost)
    return Prospects(profit, value, uplift, cautious, cost)


def check_inputs(customers: Customers, outlook: Outlook, budget: float) -> None:
    """Refuse what cannot be decided upon.

    Raises:
        DataError: shapes differ, ids repeat, a number is missing, a cost or the budget negative.
    """
    n, coupons = outlook.margin.shape if outlook.margin.ndim == 2 else (0, 0)
    if coupons == 0:
        raise DataError(
            f"expected a margin per customer and coupon, `none` first; came {outlook.margin.shape}"
        )
    if not (math.isfinite(budget) and budget >= 0):
        raise DataError(f"expected a budget of 0 or more, came {budget}")
    _check_customers(customers, n)
    _check_outlook(customers, outlook, (n, coupons))


def _check_customers(customers: Customers, n: int) -> None:
    if len(customers.customer_id) != n:
        raise DataError(f"expected {n} customer ids, came {len(customers.customer_id)}")
    for name in ("can_contact", "has_purchased", "recent_contact"):
        flags = getattr(customers, name)
        if flags.shape != (n,) or flags.dtype != np.bool_:
            raise DataError(
                f"expected {name} as {n} values true or false, came {flags.dtype} {flags.shape}"
            )
    if len(set(customers.customer_id)) < n:
        repeated = [name for name, count in Counter(customers.customer_id).items() if count > 1]
        raise DataError(f"expected each customer once; several rows for {first_rows(repeated)}")


def _check_outlook(customers: Customers, outlook: Outlook, shape: tuple[int, int]) -> None:
    doubt = ("doubt",) if outlook.doubt is not None else ()
    for name in ("cost", "future_value", "is_supported", *doubt):
        came = getattr(outlook, name).shape
        if came != shape:
            raise DataError(f"expected {name} of shape {shape} like margin, came {came}")
    contact = outlook.contact_cost
    if contact.shape != shape[1:] or contact[NONE] != 0 or not (contact >= 0).all():
        raise DataError(
            f"expected {shape[1]} contact costs of 0 or more, 0 for `none`; came {contact.tolist()}"
        )
    finite = [np.isfinite(table) for table in (outlook.margin, outlook.cost, outlook.future_value)]
    wrong = ~np.logical_and.reduce(finite).all(axis=1) | (outlook.cost < 0).any(axis=1)
    wrong &= customers.has_purchased
    if wrong.any():
        ids = np.asarray(customers.customer_id, dtype=object)[wrong]
        raise DataError(
            "expected finite forecasts and costs of 0 or more for every buyer; "
            f"wrong for customers {first_rows(ids)}: score and train again"
        )
