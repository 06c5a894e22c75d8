"""Step: fit BG/NBD on the purchase-day triples and score every customer."""

from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback.models.errors import DataError
from winback.operators.artifacts import SURVIVAL
from winback.operators.base import WinbackOperator
from winback.operators.run import Run
from winback.operators.warehouse import join_rows, read_table

if TYPE_CHECKING:
    from winback.models.survival import SurvivalFit

TRIPLE = ("frequency", "recency_days", "age_days")

TRIPLES = """
select frequency, recency_days, age_days, customers
from {schema}.rfm_triples
where as_of = {as_of}
order by frequency, recency_days, age_days
"""

# What the same histories led to of late; windows that share a history travel once.
WINDOWS = """
select
    frequency, recency_days, age_days,
    count(*)::double precision as windows,
    count(*) filter (where order_placed)::double precision as bought
from {schema}.closed_windows
where
    snapshot_date <= {as_of}::date - {decision_days}
    and snapshot_date > {as_of}::date - {decision_days} * ({periods} + 1)
group by frequency, recency_days, age_days
order by frequency, recency_days, age_days
"""

ANALYZE = "analyze {work}.customer_scores"  # the checks join it at once
CLEAR = "delete from {work}.customer_scores where as_of = {as_of}"

# Customers share triples, so the scores travel once per triple and are joined in the warehouse.
SCORE_CUSTOMERS = """
insert into {work}.customer_scores
    (as_of, run_id, customer_id, p_alive, p_purchase, expected_purchases)
select
    rfm.as_of,
    {run_id},
    rfm.customer_id,
    triple.p_alive,
    triple.p_purchase,
    triple.expected_purchases
from {schema}.customer_rfm as rfm
inner join triple_scores as triple using (frequency, recency_days, age_days)
where rfm.as_of = {as_of}
"""


class FitSurvivalOperator(WinbackOperator):
    """Fit BG/NBD and write every customer's scores to the work schema."""

    def execute(self, context: Context) -> dict[str, Any]:
        return fit_and_score(self.current_run())


def fit_and_score(run: Run) -> dict[str, Any]:
    """Fit on the warehouse's triples, write scores to the work schema and the fit as JSON.

    Returns:
        The fit's parameters and whether it is degenerate, for the run's metrics.

    Raises:
        DataError: there is no customer with a purchase before ``as_of``.
    """
    from winback.models.survival import fit_survival, gate_is_useful

    triples = _read_triples(run)
    frequency, recency, age = (triples[name].to_numpy() for name in TRIPLE)
    fit = fit_survival(
        frequency,
        recency,
        age,
        weights=triples["customers"].to_numpy(),
        engine=run.settings.survival_engine,
        penalizer=run.settings.survival_penalizer,
    )
    fit = _set_level(run, fit)
    scores = _scores(fit, (frequency, recency, age), run.settings.decision_days)
    useful, in_words = gate_is_useful(np.repeat(scores["p_alive"], triples["customers"].to_numpy()))
    table = triples.select(TRIPLE)
    for name, values in scores.items():
        table = table.append_column(name, [values])
    join_rows(run.url, "triple_scores", table, (CLEAR, SCORE_CUSTOMERS, ANALYZE), run.names)
    run.artifacts.write_json(SURVIVAL, fit.to_dict())
    gate = {"gate_is_useful": useful, "gate_in_words": in_words}
    return {**fit.to_dict(), "gain": fit.gain, "dropout": fit.dropout, **gate}


def _read_triples(run: Run) -> Any:
    triples = read_table(run.url, TRIPLES, run.names)
    if triples.num_rows == 0:
        raise DataError(
            f"no customer has a purchase before {run.as_of}, so there is nothing to fit. "
            "Check as_of, and that dbt build ran for it (table rfm_triples)."
        )
    return triples


def _set_level(run: Run, fit: "SurvivalFit") -> "SurvivalFit":
    from winback.models.survival import LEVEL_PERIODS, set_level

    days = run.settings.decision_days
    rows = read_table(
        run.url, WINDOWS, {**run.names, "decision_days": days, "periods": LEVEL_PERIODS}
    )
    if rows.num_rows == 0:
        return fit
    frequency, recency, age = (rows[name].to_numpy() for name in TRIPLE)
    windows, bought = rows["windows"].to_numpy(), rows["bought"].to_numpy()
    return set_level(fit, (frequency, recency, age), windows, bought, days)


def _scores(fit: "SurvivalFit", history: tuple[Any, Any, Any], horizon_days: int) -> dict[str, Any]:
    from winback.models.survival import (
        expected_purchases,
        probability_alive,
        probability_of_purchase,
    )

    frequency, recency, age = history
    return {
        "p_alive": probability_alive(fit, frequency, recency, age),
        "p_purchase": probability_of_purchase(fit, frequency, recency, age, horizon_days),
        "expected_purchases": expected_purchases(fit, frequency, recency, age, horizon_days),
    }
