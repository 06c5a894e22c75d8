"""How much coupon money a run may expect to spend."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from winback.models.errors import DataError, first_rows
from winback.models.pacing import (
    OpenOffers,
    Period,
    committed,
    paced_share,
    redemption_timing,
    share_of_period,
)
from winback.operators.run import Run
from winback.operators.warehouse import read_table

# Spent so far counts the redeemed money of the period's days before as_of, as the features do.
COVERING_PERIOD = """
select
    period_start,
    period_end,
    amount::double precision as amount,
    coalesce((
        select sum(coupon_cost) from {staging}.stg_orders
        where ordered_on >= period_start and ordered_on < {as_of}
    ), 0)::double precision as spent,
    period_end - {as_of} as days_left
from {staging}.stg_budgets
where period_start <= {as_of} and period_end > {as_of}
order by period_start
"""
# What was published counts as sent: money that may still be asked for.
OPEN_OFFERS = """
select
    {as_of}::date - decisions.as_of as age_days,
    sum(recommendations.expected_cost) as expected_cost
from {schema}.decisions as decisions
inner join {schema}.recommendations as recommendations
    on decisions.decision_id = recommendations.decision_id
where
    decisions.as_of < {as_of}
    and decisions.valid_to > {as_of}
    and decisions.coupon_id <> 'none'
group by decisions.as_of
order by decisions.as_of
"""
# Of offers whose window is over: an order that names another offer is not theirs.
REDEEMED_BY_DAY = """
select
    orders.ordered_on - offers.offered_on as day,
    sum(orders.coupon_cost)::double precision as cost,
    count(*) as redemptions
from {staging}.stg_coupon_offers as offers
inner join {staging}.stg_orders as orders
    on offers.customer_id = orders.customer_id
    and orders.ordered_on >= offers.offered_on
    and orders.ordered_on < offers.offered_on + {decision_days}
where
    offers.coupon_id <> 'none'
    and offers.offered_on + {decision_days} <= {as_of}
    and offers.offered_on > {as_of}::date - {look_back_days}
    and orders.coupon_cost > 0
    and coalesce(orders.coupon_offer_id, offers.offer_id) = offers.offer_id
group by orders.ordered_on - offers.offered_on
order by day
"""
LOOK_BACK_DAYS = 91  # a season: habits change, and 13 weeks hold every weekday equally often


@dataclass(frozen=True)
class RunBudget:
    """Money for one run, and where it comes from (in words, for the report)."""

    amount: float
    source: str


def run_budget(run: Run) -> RunBudget:
    """The setting, else this run's share of what is left of the covering period.

    With ``pacing``, less what offers already out will cost before the period ends.

    Raises:
        DataError: no setting, and no or more than one budget row covers ``as_of``.
    """
    if run.settings.budget is not None:
        return RunBudget(run.settings.budget, "given for this run")
    periods = read_table(run.url, COVERING_PERIOD, run.names).to_pylist()
    if len(periods) != 1:
        raise DataError(_not_one(run, periods))
    row = periods[0]
    period = Period(row["amount"], row["spent"], row["days_left"])
    words = (
        f"{period.left:,.2f} left of {period.amount:,.2f} for {row['period_start']} to "
        f"{row['period_end']}, {period.days_left} days to go"
    )
    if run.settings.pacing:
        return paced_budget(run, period, words)
    return RunBudget(share_of_period(period, run.settings.cadence_days), words)


def paced_budget(run: Run, period: Period, words: str) -> RunBudget:
    """This run's share after what open offers will still cost before the period ends."""
    offers, timing = _open_offers(run), _timing(run)
    coming = committed(offers, timing, period.days_left)
    return RunBudget(
        paced_share(period, run.settings.cadence_days, offers, timing),
        f"{words}, {coming:,.2f} of it expected by offers already out",
    )


def _open_offers(run: Run) -> OpenOffers:
    rows = read_table(run.url, OPEN_OFFERS, run.names)
    age, cost = rows["age_days"].to_numpy(), rows["expected_cost"].to_numpy()
    return OpenOffers(age.astype(np.int64), cost.astype(np.float64))


def _timing(run: Run) -> Any:
    days = run.settings.decision_days
    values = {**run.names, "decision_days": days, "look_back_days": LOOK_BACK_DAYS}
    rows = read_table(run.url, REDEEMED_BY_DAY, values)
    day = rows["day"].to_numpy().astype(np.int64)
    cost = np.bincount(day, rows["cost"].to_numpy(), days).astype(np.float64)
    return redemption_timing(cost, int(rows["redemptions"].to_numpy().sum()))


def _not_one(run: Run, periods: list[dict[str, Any]]) -> str:
    found = first_rows([f"{p['period_start']} to {p['period_end']}" for p in periods])
    return (
        f"expected one budget period that covers {run.as_of}, found {found if periods else 'none'}."
        f" Correct {run.settings.source_schema}.budgets, or give this run a budget."
    )
