"""How much coupon money a run may expect to spend."""

from dataclasses import dataclass
from typing import Any

from winback.models.errors import DataError, first_rows
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


@dataclass(frozen=True)
class RunBudget:
    """Money for one run, and where it comes from (in words, for the report)."""

    amount: float
    source: str


def run_budget(run: Run) -> RunBudget:
    """The setting, else this run's share of what is left of the covering period.

    Raises:
        DataError: no setting, and no or more than one budget row covers ``as_of``.
    """
    if run.settings.budget is not None:
        return RunBudget(run.settings.budget, "given for this run")
    periods = read_table(run.url, COVERING_PERIOD, run.names).to_pylist()
    if len(periods) != 1:
        raise DataError(_not_one(run, periods))
    period = periods[0]
    left = max(0.0, period["amount"] - period["spent"])
    share = min(1.0, run.settings.cadence_days / period["days_left"])
    return RunBudget(
        left * share,
        f"{left:,.2f} left of {period['amount']:,.2f} for {period['period_start']} to "
        f"{period['period_end']}, {period['days_left']} days to go",
    )


def _not_one(run: Run, periods: list[dict[str, Any]]) -> str:
    found = first_rows([f"{p['period_start']} to {p['period_end']}" for p in periods])
    return (
        f"expected one budget period that covers {run.as_of}, found {found if periods else 'none'}."
        f" Correct {run.settings.source_schema}.budgets, or give this run a budget."
    )
