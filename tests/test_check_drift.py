"""The drift step on a real warehouse; the oracle is NumPy over the very rows written."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest

from winback.models.drift import population_stability_index
from winback.models.settings import Settings
from winback.operators.check_drift import SHARED_FEATURES, check_drift
from winback.operators.run import Run
from winback.operators.warehouse import ensure_output_tables

AS_OF = date(2024, 3, 4)  # a Monday on the grid
PAST = [AS_OF - timedelta(7 * week) for week in (4, 3, 2, 1)]
CUSTOMERS = 900
BINS = {"days_since_last_purchase": (7, 14, 28), "remaining_budget_pct": (0.5,), "p_alive": (0.5,)}
DECIDED = AS_OF - timedelta(9)
NAMES = [f"c{number:04}" for number in range(CUSTOMERS)]


class Warehouse:
    """A schema with the tables that the step reads, and settings that name it."""

    def __init__(self, url: str, schema: str) -> None:
        settings = Settings(schema_name=schema, state_bins=BINS)
        self.run = Run(url, AS_OF.isoformat(), "run", settings)
        self.schema = schema
        ensure_output_tables(url, schema, settings.work_schema)
        self.execute(
            f"""
            create schema {settings.staging_schema};
            create table {schema}.customer_snapshots (
                snapshot_date date, customer_id text, is_on_grid boolean, category text,
                days_since_last_purchase int, remaining_budget_pct float8, reward float8);
            create view {schema}.closed_windows as
            select * from {schema}.customer_snapshots where is_on_grid;
            create table {settings.staging_schema}.int_customer_days (
                customer_id text, event_day date, purchases int, margin numeric,
                coupon_cost numeric, contact_cost numeric);
            """
        )

    def execute(self, statement: str, values: Any = None) -> list[Any]:
        """Run one statement; its rows, if any."""
        with psycopg.connect(self.run.url) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def insert(self, table: str, frame: pd.DataFrame) -> None:
        """Add rows; missing values become null."""
        names = ", ".join(frame.columns)
        holders = ", ".join(["%s"] * frame.shape[1])
        cells = frame.astype(object).where(frame.notna(), None)
        with psycopg.connect(self.run.url) as connection:
            statement = f"insert into {table} ({names}) values ({holders})"
            connection.cursor().executemany(statement, cells.to_numpy().tolist())

    def checks(self) -> dict[str, tuple[str, bool, str]]:
        """Severity, success and description by column, as stored."""
        query = f'select "column", severity, success, description from {self.schema}.data_checks'
        return {column: tuple(rest) for column, *rest in self.execute(query)}


def snapshots(rng: np.random.Generator, days: Iterable[date], *, moved: int = 0) -> pd.DataFrame:
    """One row per date and customer; the newest date's customers came ``moved`` days earlier."""
    parts = []
    for day in days:
        known = day < AS_OF
        parts.append(
            pd.DataFrame(
                {
                    "snapshot_date": day,
                    "customer_id": NAMES,
                    "is_on_grid": True,
                    "category": rng.choice([f"k{n}" for n in range(40)], CUSTOMERS),
                    "days_since_last_purchase": rng.integers(1, 40, CUSTOMERS)
                    + (0 if known else moved),
                    "remaining_budget_pct": 1.0 if known else 0.1,
                    "reward": np.maximum(rng.normal(size=CUSTOMERS), 0).round(2)
                    if known
                    else np.nan,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def scores(rng: np.random.Generator, as_of: date) -> pd.DataFrame:
    """Scores of one date."""
    mark = {"as_of": as_of, "run_id": "run", "customer_id": NAMES, "expected_purchases": 1.0}
    return pd.DataFrame(mark).assign(
        p_alive=rng.random(CUSTOMERS), p_purchase=rng.random(CUSTOMERS)
    )


def recommendations(rng: np.random.Generator) -> pd.DataFrame:
    """Decisions of one date; every tenth customer has given no consent."""
    texts = ("channel", "state", "reason", "model_version", "config_hash", "code_version")
    money = ("propensity", "baseline_profit", "expected_uplift", "q_value", "long_run_uplift")
    frame = pd.DataFrame({"customer_id": NAMES, "decision_id": NAMES, "as_of": DECIDED})
    return frame.assign(
        run_id="before",
        coupon_id=np.where(np.arange(CUSTOMERS) % 3 == 0, "none", "save5"),
        treatment_group="treatment",
        is_exploration=False,
        suppression_reason=np.where(np.arange(CUSTOMERS) % 10 == 0, "no_consent", None),
        expected_profit=rng.gamma(4.0, 1.0, CUSTOMERS),
        expected_cost=rng.random(CUSTOMERS),
        p_purchase=rng.random(CUSTOMERS),
        valid_from=DECIDED,
        valid_to=DECIDED + timedelta(7),
        created_at="2024-01-01",
        **dict.fromkeys(texts, "1"),
        **dict.fromkeys(money, 1.0),
    )


def outcomes(rng: np.random.Generator, decided: pd.DataFrame, factor: float) -> pd.DataFrame:
    """What came: profit = factor · forecast on average; nothing at all for who did not buy."""
    bought = rng.random(CUSTOMERS) < decided["p_purchase"]
    cost = np.where(rng.random(CUSTOMERS) < decided["expected_cost"], 1.0, 0.0)
    profit = factor * decided["expected_profit"] + rng.normal(size=CUSTOMERS)
    days = {"customer_id": NAMES, "event_day": DECIDED + timedelta(6), "contact_cost": 0.25}
    frame = pd.DataFrame(days).assign(
        purchases=bought.astype(int), margin=(profit + cost + 0.25).round(6), coupon_cost=cost
    )
    late = frame.head(50).assign(event_day=DECIDED + timedelta(7), margin=999.0)  # window is over
    return pd.concat([frame, late], ignore_index=True)


@pytest.fixture
def warehouse(warehouse_url: str, request: pytest.FixtureRequest) -> Warehouse:
    """A schema of the test's own."""
    return Warehouse(warehouse_url, request.node.name[:40])


def test_quantities_against_numpy(warehouse: Warehouse) -> None:
    """Histograms in SQL and in NumPy give the same index; a shift of 20 days is found."""
    rng = np.random.default_rng(0)
    frame = snapshots(rng, [*PAST, AS_OF], moved=20)
    warehouse.insert(f"{warehouse.schema}.customer_snapshots", frame)
    off_grid = frame.head(300).assign(is_on_grid=False, days_since_last_purchase=99)
    warehouse.insert(f"{warehouse.schema}.customer_snapshots", off_grid)
    before, now = scores(rng, AS_OF - timedelta(1)), scores(rng, AS_OF)
    warehouse.insert(f"{warehouse.schema}.customer_scores", before)
    warehouse.insert(f"{warehouse.schema}_work.customer_scores", now)
    found = {shift["name"]: shift for shift in check_drift(warehouse.run)["quantities"]}
    assert not set(SHARED_FEATURES) & set(found)

    def histogram(values: pd.Series, edges: Any) -> np.ndarray:
        return np.bincount(np.searchsorted(edges, values, "right"), minlength=len(edges) + 1)

    past, current = frame[frame["snapshot_date"] < AS_OF], frame[frame["snapshot_date"] == AS_OF]
    edges = BINS["days_since_last_purchase"]
    column = "days_since_last_purchase"
    expected = population_stability_index(
        histogram(past[column], edges), histogram(current[column], edges)
    )
    assert found[column]["psi"] == pytest.approx(expected)
    assert found[column]["verdict"] == "shifted"
    assert found[column]["in_words"] == "last purchase 28 or more days ago"
    assert found["p_alive"]["psi"] == pytest.approx(
        population_stability_index(
            histogram(before["p_alive"], [0.5]), histogram(now["p_alive"], [0.5])
        )
    )
    learned = past[past["snapshot_date"] < PAST[-1]]["reward"]
    newest = past[past["snapshot_date"] == PAST[-1]]["reward"]
    tenths = np.unique(np.quantile(learned, np.arange(1, 10) / 10, method="inverted_cdf"))
    shares = [np.histogram(part, [-1, *tenths, np.inf])[0] for part in (learned, newest)]
    kept = shares[0] + shares[1] > 0
    psi = population_stability_index(*(part[kept] for part in shares))
    assert found["reward"]["psi"] == pytest.approx(psi)
    assert found["reward"]["verdict"] == found["category"]["verdict"] == "stable"


def test_results_are_warnings_that_replace_those_of_an_earlier_try(warehouse: Warehouse) -> None:
    frame = snapshots(np.random.default_rng(1), [*PAST, AS_OF], moved=20)
    warehouse.insert(f"{warehouse.schema}.customer_snapshots", frame)
    figures = [check_drift(warehouse.run) for _ in range(2)]
    assert figures[0] == figures[1]
    checks = warehouse.checks()
    severity, success, text = checks["days_since_last_purchase"]
    assert (severity, success) == ("warning", False)
    assert "last purchase 28 or more days ago" in text
    assert "PSI at most 0.25" in text
    assert checks["category"][:2] == ("warning", True)
    severity, success, text = checks["p_alive"]  # never scored
    assert (severity, success) == ("info", True)
    assert "too few rows to judge: 0 now, 0 before" in text
    assert figures[0]["shifted"] == 1
    assert figures[0]["in_words"].endswith("have shifted: days_since_last_purchase.")
    (rows,) = warehouse.execute(f"select count(*) from {warehouse.schema}.data_checks")[0]
    assert rows == len(figures[0]["quantities"])


def test_nothing_yet_is_said_in_words(warehouse: Warehouse) -> None:
    figures = check_drift(warehouse.run)
    assert figures["decided_on"] is None
    assert figures["shifted"] == 0
    assert figures["in_words"].startswith("There are too few customers")
    assert {shift["verdict"] for shift in figures["quantities"]} == {"too few rows"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "stable"), (2.0, "shifted")])
def test_forecasts_against_numpy(warehouse_url: str, factor: float, verdict: str) -> None:
    """Deciles in SQL and in NumPy; days after the window and people without consent are out."""
    warehouse = Warehouse(warehouse_url, f"forecasts_{verdict}")
    rng = np.random.default_rng(4)
    decided = recommendations(rng)
    warehouse.insert(f"{warehouse.schema}.recommendations", decided)
    days = outcomes(rng, decided, factor)
    warehouse.insert(f"{warehouse.run.settings.staging_schema}.int_customer_days", days)
    warehouse.execute(
        f"insert into {warehouse.schema}.runs (run_id, as_of, status, metrics, started_at,"
        " finished_at) values ('before', %s, 'published', '{}', now(), now())",
        (DECIDED,),
    )
    figures = check_drift(warehouse.run)
    assert figures["decided_on"] == str(DECIDED)
    found = {check["name"]: check for check in figures["forecasts"]}
    asked = (decided["suppression_reason"].isna()).to_numpy()
    came = days.head(CUSTOMERS)
    profit = (came["margin"] - came["coupon_cost"] - came["contact_cost"]).to_numpy()
    for name, actual, among in (
        ("expected_profit", profit, asked),
        ("p_purchase", came["purchases"].to_numpy(), asked),
        ("expected_cost", came["coupon_cost"].to_numpy(), asked & (decided["coupon_id"] != "none")),
    ):
        predicted = decided[name].to_numpy()[among]
        assert found[name]["rows"] == among.sum()
        assert found[name]["predicted"] == pytest.approx(predicted.mean())
        assert found[name]["actual"] == pytest.approx(actual[among].mean())
        assert found[name]["slope"] == pytest.approx(_slope(predicted, actual[among]))
    assert found["expected_profit"]["verdict"] == verdict
    assert warehouse.checks()["expected_profit"][1] == (verdict == "stable")
    earlier = replace(warehouse.run, as_of=str(DECIDED + timedelta(6)), run_id="earlier")
    assert check_drift(earlier)["decided_on"] is None


ESTIMATES = [  # as the reports leave them, the newest not over yet at AS_OF
    (AS_OF - timedelta(6), AS_OF + timedelta(1), True, 0.1, 0.3, 0.2, 0.4),
    (AS_OF - timedelta(7), AS_OF, None, -0.5, 0.25, 1.5, 2.0),
    (AS_OF - timedelta(8), AS_OF - timedelta(1), True, 9.0, 9.5, 9.0, 9.5),
]


@pytest.mark.parametrize(
    ("holds", "severity", "words"),
    [
        (True, "warning", "1.5 to 2 promised per customer, -0.5 to 0.25 measured."),
        (
            False,
            "warning",
            "1.5 to 2 promised per customer, -0.5 to 0.25 measured. See incremental",
        ),
        (None, "info", "too few rows to judge: an interval is missing."),
    ],
)
def test_an_estimate_that_the_holdout_does_not_bear_out_is_warned_of(
    warehouse_url: str, holds: bool | None, severity: str, words: str, caplog: Any
) -> None:
    """By hand: of three windows the newest that is over, and what the reports said of it."""
    warehouse = Warehouse(warehouse_url, f"estimate_{holds}".lower())
    mart = f"{warehouse.schema}.incremental_profit"
    bounds = "lower float8, upper float8, estimated_lower float8, estimated_upper float8"
    warehouse.execute(f"create table {mart} (as_of date, valid_to date, {bounds})")
    check_drift(warehouse.run)
    assert "estimated_profit" not in warehouse.checks(), "made by an older winback"
    warehouse.execute(f"alter table {mart} add column estimate_holds boolean")
    for as_of, valid_to, known, *ends in ESTIMATES:
        said = holds if valid_to == AS_OF else known
        row = (as_of, valid_to, *ends, said)
        warehouse.execute(f"insert into {mart} values (%s, %s, %s, %s, %s, %s, %s)", row)
    caplog.clear()
    figures = check_drift(warehouse.run)
    found = warehouse.checks()["estimated_profit"]
    assert found[:2] == (severity, holds is not False)
    assert f"of {AS_OF - timedelta(7)} is what the holdout measured" in found[2]
    assert words in found[2]
    failed = [found[2]] if holds is False else []
    assert [record.message for record in caplog.records] == failed
    assert figures["shifted"] == len(failed)


def _slope(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Least squares over the means of tenths of the rows, weighted by rows."""
    groups = np.array_split(np.argsort(predicted, kind="stable"), 10)
    x, y = (np.array([values[rows].mean() for rows in groups]) for values in (predicted, actual))
    return float(np.polyfit(x, y, 1, w=np.sqrt([len(rows) for rows in groups]))[0])
