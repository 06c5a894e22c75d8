"""Treatment against holdout in SQL; the oracle is pandas and SciPy over the same shop.

Twelve daily decisions, so that windows overlap, on customers with refunds and late rows.
"""

from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from jinja2 import Environment
from psycopg.types.json import Json
from scipy.stats import t as student_t
from scipy.stats import ttest_ind
from shop import LAST_DAY, ONLY_MODELS, PROJECT, TIMEZONE, build, load, random_shop, rows

AS_OF = LAST_DAY - timedelta(5)
WINDOW = 7
SHARE = 0.3
FIRST = AS_OF - timedelta(20)
DATES = [FIRST + timedelta(day) for day in range(12)]  # the last window ends on AS_OF - 2
OPEN = AS_OF - timedelta(3)  # its window is not over
EFFECT = 3.0  # what an offered coupon adds to the profit of its day
SELECTED = ("--select", "tag:features", "tag:reports", *ONLY_MODELS)
FORECASTS = ("p_purchase", "expected_profit", "expected_uplift", "expected_cost")
ESTIMATED = {  # value, lower, upper: near, unknown, far above, far below; the others: no row
    DATES[3]: (0.5, -0.25, 1.25),
    DATES[4]: (None, None, None),
    DATES[5]: (1e5, 9e4, 1.1e5),
    DATES[6]: (-1e5, -1.1e5, -9e4),
}
MARTS = ("forecast_vs_actual", "incremental_profit", "incremental_profit_to_date")


def decisions(seed: int, customers: int) -> pd.DataFrame:
    """Daily decisions: a lasting holdout, one coupon a week at most, some without consent."""
    rng = np.random.default_rng(seed)
    names = [f"c{number}" for number in range(customers)]
    group = np.where(rng.random(customers) < SHARE, "holdout", "treatment")
    suppressed = rng.choice(
        ["no_consent", "no_purchase_yet", "recent_contact", None], customers, p=[0.1, 0.1, 0.3, 0.5]
    )
    parts = []
    for as_of in [*DATES, OPEN]:
        given = (group == "treatment") & (pd.isna(suppressed)) & (rng.random(customers) < 0.3)
        part = pd.DataFrame({"as_of": as_of, "customer_id": names, "treatment_group": group})
        part["coupon_id"] = np.where(given, "save5", "none")
        part["suppression_reason"] = suppressed
        for name in FORECASTS:
            part[name] = rng.random(customers).round(3)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def with_effect(frames: dict[str, pd.DataFrame], decided: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The shop in which every coupon decided is offered and adds EFFECT to its day's margin."""
    chosen = decided[decided["coupon_id"] != "none"]
    noon = pd.to_datetime(chosen["as_of"]) + pd.Timedelta(hours=12)
    noon = noon.dt.tz_localize(TIMEZONE).dt.tz_convert("UTC").to_numpy()
    offers = pd.DataFrame(
        {
            "offer_id": [f"d{row}" for row in chosen.index],
            "customer_id": chosen["customer_id"].to_numpy(),
            "coupon_id": "save5",
            "offered_at": noon,
            "propensity": 0.5,
        }
    )
    orders = pd.DataFrame(
        {
            "order_id": [f"e{row}" for row in chosen.index],
            "customer_id": chosen["customer_id"].to_numpy(),
            "ordered_at": noon,
            "revenue": 20,
            "margin": EFFECT + 5.25,  # the coupon costs 5, sending it 0.25
            "coupon_cost": 5.0,
            "coupon_offer_id": None,
        }
    )
    before = frames["coupon_offers"]
    before = before[before["offered_at"] < pd.Timestamp(FIRST, tz=TIMEZONE)]
    return {
        **frames,
        "orders": pd.concat([frames["orders"], orders], ignore_index=True),
        "coupon_offers": pd.concat([before, offers], ignore_index=True),
    }


def publish(url: str, schema: str, decided: pd.DataFrame, run_id: str = "run") -> None:
    """Write runs and recommendations as the daily run leaves them."""
    with psycopg.connect(url) as connection:
        for as_of, part in decided.groupby("as_of"):
            run = f"{run_id} {as_of}"
            metrics = Json({"settings": {"holdout_share": SHARE}})
            connection.execute(
                f"insert into {schema}.runs values (%s, %s, 'published', 9, 9, 0, 0, %s, now(),"
                " now()) on conflict (run_id) do update set finished_at = now()",
                (run, as_of, metrics),
            )
            connection.execute(f"delete from {schema}.recommendations where as_of = %s", (as_of,))
            _insert(connection, f"{schema}.recommendations", map(_row, _marked(part, run)))
            if as_of in ESTIMATED:
                _insert(connection, f"{schema}.policy_evaluations", _evaluations(run, as_of))


def _evaluations(run: str, as_of: date) -> list[dict[str, Any]]:
    """The row that the mart shows among others that it should not take for it."""
    names = ("value", "lower", "upper")
    others = (("challenger", 7.0), ("challenger - none", 8.0))
    found = {("challenger - none, window", ESTIMATED[as_of])} | {(p, (x, x, x)) for p, x in others}
    common = {"run_id": run, "as_of": as_of, "estimator": "doubly_robust"}
    return [{**common, "policy": p, **dict(zip(names, x, strict=True))} for p, x in found]


def _marked(part: pd.DataFrame, run: str) -> list[dict[str, Any]]:
    return [{**row, "run_id": run} for row in part.to_dict("records")]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    money = dict.fromkeys(("propensity", "baseline_profit", "q_value", "long_run_uplift"), 1.0)
    versions = dict.fromkeys(("model_version", "config_hash", "code_version", "reason"), "1")
    given = {name: None if value is None else value for name, value in row.items()}
    return {
        **given,
        **money,
        **versions,
        "decision_id": f"{row['as_of']} {row['customer_id']}",
        "is_exploration": False,
        "valid_from": row["as_of"],
        "valid_to": row["as_of"] + timedelta(WINDOW),
        "created_at": "2024-01-01",
    }


def _insert(connection: Any, table: str, records: Iterable[dict[str, Any]]) -> None:
    records = list(records)
    names = list(records[0])
    holders = ", ".join(f"%({name})s" for name in names)
    statement = f"insert into {table} ({', '.join(names)}) values ({holders})"
    connection.cursor().executemany(statement, records)


@pytest.fixture(scope="module")
def decided() -> pd.DataFrame:
    """What was decided, day by day."""
    return decisions(seed=1, customers=60)


@pytest.fixture(scope="module")
def frames(decided: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The shop's source tables."""
    return with_effect(random_shop(seed=3, customers=60), decided)


@pytest.fixture(scope="module")
def warehouse(warehouse_url: str, frames: dict[str, pd.DataFrame], decided: pd.DataFrame) -> str:
    """All published, and the marts built once at AS_OF in schema ``shop``."""
    load(warehouse_url, frames, "shop_raw")
    assert build(warehouse_url, "shop", FIRST, *SELECTED).success  # nothing published yet
    publish(warehouse_url, "shop", decided)
    assert build(warehouse_url, "shop", AS_OF, *SELECTED).success
    return warehouse_url


@pytest.fixture(scope="module")
def profits(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Profit per customer and local day, in pandas."""
    orders = frames["orders"].copy()
    margin = orders["margin"].fillna(orders["revenue"] * 0.3)
    orders["profit"] = margin - orders["coupon_cost"]
    fees = frames["coupons"].set_index("coupon_id")["contact_cost"]
    offers = frames["coupon_offers"].copy()
    offers["profit"] = -offers["coupon_id"].map(fees).fillna(0)
    days = [
        frame.assign(day=frame[at].dt.tz_convert(TIMEZONE).dt.date)[
            ["customer_id", "day", "profit"]
        ]
        for frame, at in ((orders, "ordered_at"), (offers, "offered_at"))
    ]
    return pd.concat(days).groupby(["customer_id", "day"], as_index=False)["profit"].sum()


def compared(decided: pd.DataFrame) -> pd.DataFrame:
    """Customers with consent and a purchase, over windows that are over."""
    out = decided["suppression_reason"].isin(["no_consent", "no_purchase_yet"])
    return decided[~out & decided["as_of"].isin(DATES)]


def of_window(profits: pd.DataFrame, first: date, end: date, customers: Any) -> np.ndarray:
    """(n,) profit of the customers in [first, end), 0 for who did nothing."""
    inside = profits[(profits["day"] >= first) & (profits["day"] < end)]
    return inside.groupby("customer_id")["profit"].sum().reindex(customers, fill_value=0).to_numpy()


def mart(url: str, name: str, schema: str = "shop") -> pd.DataFrame:
    """A mart in a stable order."""
    return rows(url, f"select * from {schema}.{name} order by 1, 2, 3, 4, 5, 6, 7")


def assert_welch(row: Any, treated: np.ndarray, held: np.ndarray) -> None:
    """Oracle: SciPy's Welch test."""
    test = ttest_ind(treated, held, equal_var=False)
    interval = test.confidence_interval()
    assert (row.treated_customers, row.holdout_customers) == (len(treated), len(held))
    assert row.treated_profit == pytest.approx(treated.mean())
    assert row.incremental_profit == pytest.approx(treated.mean() - held.mean())
    assert row.standard_error == pytest.approx((treated.mean() - held.mean()) / test.statistic)
    assert row.degrees_of_freedom == pytest.approx(test.df)
    assert (row.lower, row.upper) == pytest.approx((interval.low, interval.high), rel=1e-5)


def overlaps(measured: tuple[float, float], promised: np.ndarray) -> bool | None:
    """Whether a point lies in both intervals; None where one is unknown."""
    both = np.array([measured, promised])
    return None if np.isnan(both).any() else bool(both[:, 0].max() <= both[:, 1].min())


def test_each_decision_against_scipy(
    warehouse: str, decided: pd.DataFrame, profits: pd.DataFrame
) -> None:
    found = mart(warehouse, "incremental_profit")
    assert list(found["as_of"]) == DATES
    for row in found.itertuples():
        part = compared(decided)[lambda frame, day=row.as_of: frame["as_of"] == day]
        end = row.as_of + timedelta(WINDOW)
        groups = {
            name: of_window(profits, row.as_of, end, group["customer_id"])
            for name, group in part.groupby("treatment_group")
        }
        assert_welch(row, groups["treatment"], groups["holdout"])
        treated = part[part["treatment_group"] == "treatment"]
        assert row.expected_profit == pytest.approx(treated["expected_profit"].mean())
        assert row.expected_uplift == pytest.approx(treated["expected_uplift"].mean())
        assert row.expected_cost == pytest.approx(treated["expected_cost"].sum())
        assert row.customers_chosen == (treated["coupon_id"] != "none").sum()
        estimated = [row.estimated_profit, row.estimated_lower, row.estimated_upper]
        known = np.array(ESTIMATED.get(row.as_of, (None,) * 3), np.float64)
        assert np.array_equal(np.array(estimated, np.float64), known, equal_nan=True)
        assert row.estimate_holds == overlaps((row.lower, row.upper), known[1:])
    assert set(found["estimate_holds"]) == {True, False, None}


def test_to_date_counts_each_day_once_and_each_customer_once(
    warehouse: str, decided: pd.DataFrame, profits: pd.DataFrame
) -> None:
    """Oracle: pandas over calendar days; the sum over windows would be several times as large."""
    (row,) = mart(warehouse, "incremental_profit_to_date").itertuples()
    end = DATES[-1] + timedelta(WINDOW)
    entered = compared(decided).groupby("customer_id")[["treatment_group"]].first()
    entered["profit"] = of_window(profits, FIRST, end, entered.index)
    groups = {name: part["profit"].to_numpy() for name, part in entered.groupby("treatment_group")}
    assert_welch(row, groups["treatment"], groups["holdout"])
    assert row.days_covered == (end - FIRST).days
    assert row.decisions == len(DATES)
    assert row.total_profit == pytest.approx(row.incremental_profit * len(groups["treatment"]))
    treated = compared(decided)[lambda frame: frame["treatment_group"] == "treatment"]
    assert row.expected_total_profit == pytest.approx(treated["expected_uplift"].sum())


def test_forecasts_by_coupon_against_pandas(
    warehouse: str, decided: pd.DataFrame, profits: pd.DataFrame
) -> None:
    found = mart(warehouse, "forecast_vs_actual").set_index(
        ["as_of", "treatment_group", "coupon_id"]
    )
    grain = compared(decided).groupby(["as_of", "treatment_group", "coupon_id"])
    assert set(found.index) == set(grain.groups)
    for key, part in grain:
        row = found.loc[key]
        profit = of_window(profits, key[0], key[0] + timedelta(WINDOW), part["customer_id"])
        assert row["customers"] == len(part)
        assert row["profit"] == pytest.approx(profit.sum())
        assert row["profit_squares"] == pytest.approx((profit**2).sum())
        assert row["expected_buyers"] == pytest.approx(part["p_purchase"].sum())


def test_late_rows_and_earlier_dates_equal_a_full_refresh(warehouse: str) -> None:
    """Oracle: a full refresh. A late order, a rerun, a backfill: the rows are those of the day."""
    late = f"insert into shop_raw.orders values ('late', 'c1', '{DATES[5]} 12:00+00', 400, 200, 0)"
    with psycopg.connect(warehouse) as connection:
        connection.execute(late)
        connection.execute("update shop.runs set run_id = 'again' where as_of = %s", (DATES[2],))
        connection.execute(
            "update shop.recommendations set run_id = 'again' where as_of = %s", (DATES[2],)
        )
    before = mart(warehouse, "forecast_vs_actual")
    for as_of in (AS_OF, DATES[8], AS_OF):
        assert build(warehouse, "shop", as_of, *SELECTED).success
        if as_of < AS_OF:
            assert list(mart(warehouse, "incremental_profit")["as_of"]) == DATES[:2]
    found = {name: mart(warehouse, name) for name in MARTS}
    assert not found["forecast_vs_actual"].equals(before)
    again = ("--full-refresh", "--select", *MARTS, "int_decision_windows", *ONLY_MODELS)
    assert build(warehouse, "shop", AS_OF, *again).success
    for name in MARTS[:2]:
        pd.testing.assert_frame_equal(mart(warehouse, name), found[name])
    history = found["incremental_profit_to_date"]
    assert list(history["as_of"]) == [DATES[8], AS_OF]
    newest = history[history["as_of"] == AS_OF].reset_index(drop=True)
    pd.testing.assert_frame_equal(mart(warehouse, "incremental_profit_to_date"), newest)


def test_only_windows_with_new_events_are_computed_again(warehouse: str) -> None:
    """An order of the sixth day lies in the windows of the first to the sixth decision."""
    before = mart(warehouse, "forecast_vs_actual").set_index("as_of")["checksum"]
    statement = f"insert into shop_raw.orders values ('b', 'c2', '{DATES[5]} 12:00+00', 40, 20, 0)"
    with psycopg.connect(warehouse) as connection:
        connection.execute(statement)
    assert build(warehouse, "shop", AS_OF, *SELECTED).success
    after = mart(warehouse, "forecast_vs_actual").set_index("as_of")["checksum"]
    assert sorted({day for day in DATES if before[day].iloc[0] != after[day].iloc[0]}) == DATES[:6]


def test_a_known_effect_is_found_and_a_lopsided_split_is_named(
    warehouse_url: str, frames: dict[str, pd.DataFrame]
) -> None:
    """1,000 customers who do nothing but redeem: the effect per customer is known exactly."""
    decided = decisions(seed=5, customers=1000)
    decided = decided[decided["as_of"] == DATES[0]].assign(suppression_reason=None)
    nothing = {name: frames[name].head(0) for name in ("orders", "order_items", "coupon_offers")}
    quiet = {**frames, **nothing}
    load(warehouse_url, with_effect(quiet, decided), "known_raw")
    assert build(warehouse_url, "known", FIRST, *SELECTED).success
    publish(warehouse_url, "known", decided)
    assert build(warehouse_url, "known", AS_OF, *SELECTED).success
    treated = decided[decided["treatment_group"] == "treatment"]
    truth = EFFECT * (treated["coupon_id"] != "none").mean()
    for name in MARTS[1:]:
        (row,) = mart(warehouse_url, name, "known").itertuples()
        assert row.incremental_profit == pytest.approx(truth)
        assert row.lower < truth < row.upper
        assert row.sample_ratio_ok
    lost = decided[(decided["treatment_group"] == "holdout") | (decided.index % 4 > 0)]
    publish(warehouse_url, "known", lost)
    assert build(warehouse_url, "known", AS_OF, *SELECTED).success
    (row,) = mart(warehouse_url, "incremental_profit", "known").itertuples()
    share = (lost["treatment_group"] == "holdout").mean()
    expected = (share - SHARE) * len(lost) / np.sqrt(len(lost) * SHARE * (1 - SHARE))
    assert row.sample_ratio_z == pytest.approx(expected)
    assert not row.sample_ratio_ok


def test_customers_moved_between_groups_are_left_out_to_date(warehouse: str) -> None:
    with psycopg.connect(warehouse) as connection:
        moved = connection.execute(
            "update shop.recommendations set treatment_group = 'holdout' where as_of = %s and"
            " treatment_group = 'treatment' and customer_id < 'c2' and coalesce("
            "suppression_reason, '') not in ('no_consent', 'no_purchase_yet')",
            (DATES[-1],),
        ).rowcount
    before = mart(warehouse, "incremental_profit_to_date").iloc[-1]
    assert build(warehouse, "shop", AS_OF, "--select", MARTS[2], *ONLY_MODELS).success
    after = mart(warehouse, "incremental_profit_to_date").iloc[-1]
    assert moved > 0
    assert after["customers_left_out"] == moved
    assert after["treated_customers"] == before["treated_customers"] - moved
    assert after["sample_ratio_ok"] is None


@pytest.mark.parametrize("df", [3, 5, 10, 20, 100])
def test_the_quantile_of_student_against_scipy(warehouse_url: str, df: int) -> None:
    """Oracle: scipy.stats.t; the macro rendered as the marts render it."""
    macro = (PROJECT / "macros/statistics.sql").read_text()
    module: Any = Environment(autoescape=False).from_string(macro).module
    found = rows(warehouse_url, f"select {module.t_quantile(f'{df}.0')} as quantile")
    tolerance = 2e-3 if df < 20 else 1e-6
    assert float(found["quantile"].item()) == pytest.approx(student_t.ppf(0.975, df), rel=tolerance)
