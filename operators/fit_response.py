"""Step: learn how hidden classes of customers respond to coupons, from the log."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from airflow.sdk import Context

from winback.models.errors import NotFittedError
from winback.models.situations import COUPONS, PURCHASES, Panel
from winback.operators.artifacts import (
    OVERLAP,
    PROFIT_MODEL,
    PROFIT_WEIGHTS,
    PROPENSITIES,
    RESPONSE_HALVES,
    RESPONSE_MODEL,
    RESPONSE_STACK,
    SURVIVAL,
)
from winback.operators.base import WinbackOperator
from winback.operators.panel import PanelRows, read_panel
from winback.operators.run import Run
from winback.operators.snapshots import (
    GRID_START,
    PROFIT_FEATURES,
    Catalogue,
    features,
    p_purchase,
    read_catalogue,
    sequences,
)
from winback.operators.warehouse import read_table

if TYPE_CHECKING:
    from winback.models.cross_fitting import Halves
    from winback.models.profit import ProfitModel
    from winback.models.response import ResponseModel
    from winback.models.stacking import Stack

MOST_OFTEN = 20.0  # a window never counts for more than this many
STACK_ROWS = 20_000  # windows that the two forecasts are mixed on: a weight is known to a few %
WINDOWS = """
select order_placed, order_profit, category_sequence, {columns}
from unnest({customers}::text[], {periods}::int[]) with ordinality
    as chosen (customer_id, period, place)
inner join {schema}.customer_snapshots as snapshots
    on chosen.customer_id = snapshots.customer_id
    and snapshots.snapshot_date = {grid_start}::date + {decision_days} * chosen.period
order by chosen.place
"""


class FitResponseOperator(WinbackOperator):
    """Fit the response model, and one to each half of the customers; they become artifacts."""

    def execute(self, context: Context) -> dict[str, Any]:
        return fit(self.current_run())


def fit(run: Run) -> dict[str, Any]:
    """Estimate missing propensities, fit the classes, and mix in the profit model's forecast.

    Models of each half of the customers are fitted too: they say what the other half proves.

    Returns:
        How the fit ended, the overlap of the log and the weights of the mixture, for the metrics.

    Raises:
        DataError: no past window has a purchase.
        NotFittedError: the profit model has not been trained in this run.
    """
    from winback.models.cross_fitting import fit_halves
    from winback.models.response_fit import fit_response

    catalogue, settings = read_catalogue(run), run.settings
    read = read_panel(run, catalogue, ("avg_order_value", "monetary_value"))
    panel, overlap = _fill_propensities(read, catalogue, settings.seed)
    face_values = np.array(catalogue.face_values)
    chosen: Any = {"classes": settings.response_classes, "seed": settings.seed}
    fitted = fit_response(panel, face_values, **chosen)
    run.artifacts.write_arrays(RESPONSE_MODEL, fitted.model.to_arrays())
    run.artifacts.write_json(OVERLAP, overlap)
    run.artifacts.write_arrays(PROPENSITIES, {"propensity": panel.propensity})
    _write_halves(run, fit_halves(panel, face_values, **chosen))
    figures = {
        "classes": fitted.model.classes,
        "shares": fitted.model.share.round(4).tolist(),
        "log_likelihood": fitted.log_likelihood,
        "iterations": fitted.iterations,
        "largest_weight": fitted.largest_weight,
        "effective_share_of_offers": fitted.effective_share,
        "overlap": overlap,
    }
    if settings.use_transformer:
        stack = _stack(run, replace(read, panel=panel), fitted.model)
        run.artifacts.write_json(
            RESPONSE_STACK, {"purchase": list(stack.purchase), "margin": list(stack.margin)}
        )
        figures["stack"] = {"purchase": list(stack.purchase), "margin": list(stack.margin)}
    return figures


def _fill_propensities(
    read: PanelRows, catalogue: Catalogue, seed: int
) -> tuple[Panel, dict[str, Any]]:
    """The panel with propensities estimated where the log has none, and what overlap it has.

    ``is_readable`` in the report says of each coupon whether the log can tell what it does. A
    decision of winback's own counts once, however likely it was: chosen by what is on record, it
    hides nothing, while rarer and rarer exploration would make the log look ever less readable.
    """
    from winback.models.propensity import (
        estimate_propensities,
        fill_logged,
        overlap,
        overlap_of_logged,
    )

    panel, closed = read.panel, read.panel.closed
    coupon, logged = panel.coupon[closed], panel.propensity[closed]
    coupons, names = len(catalogue.coupon_ids), [f"“{label}”" for label in catalogue.labels]
    logged_share = float(np.isfinite(logged).mean())
    if not (coupon > 0).any() or panel.customers < 2:
        nothing = _rows(catalogue, [{"is_readable": True}] * coupons)
        verdict = "No offers in the log yet."
        return panel, {"logged_share": logged_share, "verdict": verdict, "coupons": nothing}
    propensity = panel.propensity.copy()
    if logged_share < 1:
        looks = _looks(read)[closed]
        chances = estimate_propensities(looks, coupon, panel.customer[closed], coupons, seed=seed)
        propensity[closed] = fill_logged(logged, chances, coupon)
        found = overlap(chances, coupon, names, panel.own[closed])
    else:
        found = overlap_of_logged(1 / panel.inverse_propensity[closed], coupon, coupons, names)
    report = {
        "logged_share": logged_share,
        "verdict": found.verdict,
        "coupons": _rows(catalogue, [one.to_dict() for one in found.coupons]),
    }
    return replace(panel, propensity=propensity), report


def _rows(catalogue: Catalogue, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One per coupon, called by what people call it."""
    named = zip(catalogue.coupon_ids, catalogue.labels, found, strict=True)
    return [{**one, "coupon_id": coupon_id, "label": label} for coupon_id, label, one in named]


def _write_halves(run: Run, halves: "Halves | None") -> None:
    """Each half's model; an empty file where the log teaches a half nothing."""
    models = halves.models if halves else ()
    arrays = {
        f"{part}.{name}": values
        for part, model in enumerate(models)
        for name, values in model.to_arrays().items()
    }
    run.artifacts.write_arrays(RESPONSE_HALVES, arrays)


def read_halves(run: Run, panel: Panel) -> "Halves | None":
    """The models of the panel's two halves, or None where the log taught a half nothing.

    Raises:
        NotFittedError: the response model has not been fitted in this run.
    """
    from winback.models.cross_fitting import Halves, halves
    from winback.models.response import ResponseModel

    arrays = run.artifacts.read_arrays(RESPONSE_HALVES)
    if not arrays:
        return None
    first, second = (
        ResponseModel.from_arrays(
            {name[2:]: values for name, values in arrays.items() if name.startswith(f"{part}.")}
        )
        for part in (0, 1)
    )
    return Halves(halves(panel.customers, run.settings.seed), (first, second))


def with_propensities(run: Run, panel: Panel) -> Panel:
    """The panel with propensities everywhere, as the response model was fitted with.

    Raises:
        NotFittedError: the response model has not been fitted in this run, or on other rows.
    """
    propensity = run.artifacts.read_arrays(PROPENSITIES)["propensity"]
    if len(propensity) != len(panel.period):
        raise NotFittedError(
            f"expected propensities of {len(panel.period)} decisions, came {len(propensity)}: "
            "the features have changed since. Run fit_response again."
        )
    return replace(panel, propensity=propensity)


def read_response(run: Run) -> "ResponseModel":
    """The fitted model of this run.

    Raises:
        NotFittedError: it has not been fitted.
    """
    from winback.models.response import ResponseModel

    return ResponseModel.from_arrays(run.artifacts.read_arrays(RESPONSE_MODEL))


def readable_coupons(run: Run) -> Any:
    """(A,) whether the log can tell what a coupon does.

    Raises:
        NotFittedError: the response model has not been fitted in this run.
    """
    rows = run.artifacts.read_json(OVERLAP)["coupons"]
    return np.array([row["is_readable"] for row in rows], dtype=np.bool_)


def _looks(read: PanelRows) -> Any:
    """(m, F) what an offer may have gone by."""
    from winback.models.propensity import habits

    panel = read.panel
    since_first = np.arange(len(panel.period)) - np.repeat(panel.first[:-1], np.diff(panel.first))
    place = panel.situation // COUPONS
    named = ("frequency", "avg_order_value", "monetary_value", "coupons_received")
    columns = [read.rows[name].to_numpy().astype(np.float64) for name in named]
    seen = [place // PURCHASES, place % PURCHASES, panel.situation % COUPONS, since_first]
    return np.column_stack([*seen, *columns, habits(panel)])


def _stack(run: Run, read: PanelRows, response: "ResponseModel") -> "Stack":
    """Weights of the two forecasts on the latest windows."""
    from winback.models.response import respond
    from winback.models.response_fit import beliefs
    from winback.models.stacking import fit_stack

    place = _latest(read.panel, run.settings.seed)
    rows = _read_windows(run, read, place)
    said = respond(response, beliefs(response, read.panel)[place], read.panel.situation[place])
    purchase, margin = forecast_without_coupon(run, read_profit_model(run), rows)
    chance = said.purchase[:, 0]
    return fit_stack(
        chance,
        purchase,
        rows["order_placed"].to_numpy(),
        _inverse(read.panel.propensity[place]),
        said.margin[:, 0] / np.maximum(chance, 1e-9),
        margin,
        rows["order_profit"].to_numpy(),
    )


def _inverse(propensity: Any) -> Any:
    """(n,) 1 / propensity, so that windows without a coupon speak for all customers."""
    known = np.where(np.isfinite(propensity), propensity, 1.0)
    return np.minimum(1 / np.maximum(known, 1e-6), MOST_OFTEN)


def forecast_without_coupon(run: Run, model: "ProfitModel", rows: Any) -> tuple[Any, Any]:
    """(n,) each: the profit model's chance of a purchase without a coupon, and its margin."""
    from winback.models.survival import SurvivalFit

    if rows.num_rows == 0:
        return np.zeros(0), np.zeros(0)
    if not run.settings.use_survival:
        known = np.ones(rows.num_rows)
    elif "p_purchase" in rows.column_names:
        known = rows["p_purchase"].to_numpy()
    else:
        fit = SurvivalFit.from_dict(run.artifacts.read_json(SURVIVAL))
        known = p_purchase(rows, fit, run.settings)
    seen = model.forecast(sequences(rows), features(rows), known)
    chance = np.clip(seen.purchase[:, 0], 1e-6, 1 - 1e-6)
    return chance, seen.margin[:, 0] / chance


def read_profit_model(run: Run) -> "ProfitModel":
    """The profit model of this run.

    Raises:
        NotFittedError: it has not been trained.
    """
    from winback.models.profit import ProfitModel

    return ProfitModel.from_parts(
        run.artifacts.read_tensors(PROFIT_WEIGHTS), run.artifacts.read_json(PROFIT_MODEL)
    )


def _latest(panel: Panel, seed: int) -> Any:
    """(n,) rows of the latest windows without a coupon, STACK_ROWS of them drawn by chance."""
    from winback.models.response_fit import RECENT_PERIODS

    newest = panel.period[panel.closed].max(initial=0)
    is_one = panel.closed & (panel.coupon == 0) & (panel.period > newest - RECENT_PERIODS)
    rows = np.flatnonzero(is_one)
    drawn = np.random.default_rng(seed).permutation(len(rows))[:STACK_ROWS]
    return rows[np.sort(drawn)]


def _read_windows(run: Run, read: PanelRows, place: Any) -> Any:
    """What the profit model asks of some of the panel's rows, in their order."""
    from psycopg import sql

    names = {
        **run.names,
        "columns": sql.SQL(", ").join(map(sql.Identifier, PROFIT_FEATURES)),
        "decision_days": run.settings.decision_days,
        "grid_start": GRID_START,
        "customers": read.customer_id[read.panel.customer[place]].tolist(),
        "periods": read.panel.period[place].tolist(),
    }
    return read_table(run.url, WINDOWS, names)
