"""The report's page: its numbers against sums over the very rows written, by plain Python."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Json
from rich.console import Console

from winback.models.calibration import CalibrationBin
from winback.models.drift import check_forecast, compare
from winback.models.errors import NotFittedError
from winback.models.profit_baselines import ProfitReport, Scores
from winback.models.propensity import Overlap, overlap, overlap_of_logged
from winback.models.settings import Settings, load_settings
from winback.models.survival import fit_survival
from winback.operators import plots
from winback.operators.artifacts import PROFIT_REPORT, SURVIVAL
from winback.operators.console import show_summary
from winback.operators.read_report import read_report
from winback.operators.report import percent, write_report
from winback.operators.run import Run
from winback.operators.run_report import signed, span
from winback.operators.snapshots import CATALOGUE
from winback.operators.warehouse import ensure_output_tables

STAGED_COUPONS = CATALOGUE.split("{staging}.")[1].split()[0]  # the model that dbt would build
AS_OF = date(2024, 3, 4)
MOMENT = datetime(2024, 3, 4, 5, tzinfo=timezone.utc)
RECENT = "days_since_last_purchase=[-inf,7)|purchases_last_30d=[2,4)|category=toys"
AWAY = "days_since_last_purchase=[14,28)|purchases_last_30d=[1,2)|category=books"
COUPONS = [
    {"coupon_id": "none", "label": "No coupon", "face_value": 0, "contact_cost": 0},
    {"coupon_id": "save5", "label": "Save 5", "face_value": 5, "contact_cost": 0.1},
    {"coupon_id": "save10", "label": "Save 10", "face_value": 10, "contact_cost": 0.1},
]
# customer, coupon, cost, uplift in the window, in the long run, state, suppressed, drawn by chance
DECIDED = [
    ("ada", "save5", 1.5, 0.5, 7.25, AWAY, None, False),
    ("bob", "save5", 2.0, -0.25, 6.5, AWAY, None, False),
    ("cleo", "save10", 3.25, 1.0, 5.0, RECENT, None, True),
    ("dora", "none", 0.0, 0.0, 0.0, RECENT, None, True),
    ("emil", "none", 0.0, 0.0, 0.0, RECENT, "holdout", False),
    ("fay", "none", 0.0, 0.0, 0.0, AWAY, "budget", False),
    ("gus", "none", 0.0, 0.0, 0.0, None, "no_consent", False),
    ("hal", "none", 0.0, 0.0, 0.0, AWAY, "budget", False),
]
# state, coupon, q value, past decisions, supported
PLANNED = [
    (AWAY, "none", 10.0, 400, True),
    (AWAY, "save5", 14.0, 50, True),
    (AWAY, "save10", 99.0, 1, False),
    (RECENT, "none", 20.0, 900, True),
    (RECENT, "save5", 19.0, 40, True),
    (RECENT, "save10", 50.0, 2, False),
]
EPOCHS = [
    {"epoch": 1, "train_loss": 1.2, "validation_loss": 1.1},
    {"epoch": 2, "train_loss": 1.0, "validation_loss": 1.05},
]
DECILES = [CalibrationBin(i, 100, i / 12, i / 11, 0.01) for i in range(1, 11)]
PROFIT = ProfitReport(
    rows=1234,
    from_day=(AS_OF - timedelta(days=21) - date(1970, 1, 1)).days,
    scores={
        "transformer": Scores(12.5, 0.42, 0.51, 0.83),
        "gradient_boosting": Scores(13.75, 0.35, 0.55, None),
        "mean": Scores(17.25, -0.01, 0.69, 0.5),
    },
    purchase_deciles=DECILES,
    reward_deciles=DECILES,
    is_transformer_best=True,
    verdict="The Transformer forecasts best.",
)
CHECKS = [
    ("sources", "raw.orders", "order_id", "critical", True, 0, "Every order has an id."),
    ("features", "winback.customer_rfm", None, "warning", False, 1200, "About as many as before."),
]


@dataclass
class Shop:
    """One run's rows in a schema of its own."""

    url: str
    run: Run
    status: str = "published"
    coupons: list[dict[str, Any]] = field(default_factory=lambda: [*COUPONS])
    decided: list[tuple[Any, ...]] = field(default_factory=lambda: [*DECIDED])
    planned: list[tuple[Any, ...]] = field(default_factory=lambda: [*PLANNED])
    performance: list[dict[str, Any]] = field(default_factory=list)
    to_date: list[dict[str, Any]] = field(default_factory=list)
    drift: dict[str, Any] = field(default_factory=dict)
    overlap: dict[str, Any] = field(default_factory=dict)
    allocation: dict[str, Any] = field(default_factory=dict)
    is_cold_start: bool = False

    def fill(self) -> "Shop":
        """Write everything that a run leaves before its report."""
        settings = self.run.settings
        ensure_output_tables(self.url, settings.schema_name, settings.work_schema)
        place = settings.schema_name if self.status == "published" else settings.work_schema
        with psycopg.connect(self.url) as connection:
            self._tables_of_dbt(connection)
            self._record(connection)
            for table, rows in self._results().items():
                _insert(connection, place, table, rows)
            _insert(connection, settings.schema_name, "data_checks", self._checks())
            _insert(connection, settings.schema_name, "incremental_profit", self.performance)
            _insert(connection, settings.schema_name, "incremental_profit_to_date", self.to_date)
            _insert(connection, settings.staging_schema, STAGED_COUPONS, self.coupons)
        self.run.artifacts.write_json(SURVIVAL, fit_survival([0], [0], [30], [8]).to_dict())
        training = {"history": EPOCHS, "best_epoch": 2}
        self.run.artifacts.write_json(PROFIT_REPORT, {**PROFIT.to_dict(), "training": training})
        return self

    def page(self) -> str:
        """The report as written."""
        return Path(write_report(self.run).removeprefix("file://")).read_text()

    def _tables_of_dbt(self, connection: Any) -> None:
        settings = self.run.settings
        connection.execute(
            f"""
            create schema {settings.staging_schema};
            create table {settings.staging_schema}.{STAGED_COUPONS} (
                coupon_id text, label text, channel text, face_value numeric, contact_cost numeric);
            create table {settings.schema_name}.incremental_profit (
                as_of date, treated_customers bigint, holdout_customers bigint,
                treated_buyers bigint, holdout_buyers bigint, treated_profit float8,
                holdout_profit float8, incremental_profit float8, lower float8, upper float8,
                estimated_lower float8, estimated_upper float8,
                sample_ratio_ok boolean, customers_chosen bigint, treated_offered bigint,
                holdout_offered bigint,
                expected_profit float8, expected_uplift float8, expected_cost float8,
                coupon_cost float8);
            create table {settings.schema_name}.incremental_profit_to_date (
                as_of date, first_decision date, days_covered bigint, treated_customers bigint,
                holdout_customers bigint, incremental_profit float8, lower float8, upper float8,
                total_profit float8, expected_total_profit float8, sample_ratio_ok boolean);
            """
        )

    def _record(self, connection: Any) -> None:
        allocation = {"budget_source": "given for this run", "is_cold_start": self.is_cold_start}
        metrics = {
            "allocation": {**allocation, **self.allocation},
            "drift": self.drift,
            "response": {"overlap": self.overlap},
        }
        row = {
            "run_id": self.run.run_id,
            "as_of": AS_OF,
            "status": self.status,
            "budget": 9.0,
            "expected_spend": 6.75,
            "metrics": Json(metrics),
            "started_at": MOMENT,
            "finished_at": MOMENT,
        }
        _insert(connection, self.run.settings.schema_name, "runs", [row])

    def _results(self) -> dict[str, list[dict[str, Any]]]:
        mark = {"as_of": AS_OF, "run_id": self.run.run_id}
        buyers = [row for row in self.decided if row[5] is not None]
        scores = {"p_alive": 1.0, "p_purchase": 0.5, "expected_purchases": 1.0}
        return {
            "recommendations": [_recommendation(mark, *row) for row in self.decided],
            "q_table": [_q_row(mark, *row) for row in self.planned],
            "customer_scores": [{**mark, "customer_id": row[0], **scores} for row in buyers],
        }

    def _checks(self) -> list[dict[str, Any]]:
        names = ("suite", "table_name", "column", "severity", "success")
        names = (*names, "unexpected_count", "description")
        mark = {"as_of": AS_OF, "run_id": self.run.run_id, "expectation": "expect_something"}
        return [{**mark, **dict(zip(names, check, strict=True))} for check in CHECKS]


@pytest.fixture
def shop(warehouse_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    """An unfilled shop; every test has its own schema."""
    schema = re.sub(r"\W", "_", request.node.name.lower())[:40]
    settings = Settings(schema_name=schema, artifacts_uri=str(tmp_path), currency="EUR")
    return Shop(warehouse_url, Run(warehouse_url, AS_OF.isoformat(), "manual__1", settings))


def test_report_has_the_sums_over_the_rows(shop: Shop) -> None:
    report = read_report(shop.fill().run)
    given = [row for row in DECIDED if row[1] != "none"]
    assert report.totals.customers == len(DECIDED)
    assert report.totals.with_coupon == len(given)
    assert report.totals.expected_spend == sum(row[2] for row in DECIDED)
    assert report.totals.expected_uplift == sum(row[3] for row in DECIDED)
    assert report.totals.long_run_uplift == sum(row[4] for row in DECIDED)
    assert {line.coupon_id: line.customers for line in report.coupons} == {"save5": 2, "save10": 1}
    assert sum(count for _, count in report.without_coupon) == len(DECIDED) - len(given)
    assert [row["customer_id"] for row in report.recommendations[:3]] == ["ada", "bob", "cleo"]


def test_plan_counts_states_by_hand(shop: Shop) -> None:
    """In AWAY the supported save5 (14) beats none (10); in RECENT it does not (19 < 20)."""
    plan = read_report(shop.fill().run).plan
    assert plan["states"] == 2
    assert plan["decisions"] == sum(row[3] for row in PLANNED)
    assert plan["offers"] == sum(row[3] for row in PLANNED if row[1] != "none")
    assert plan["states_with_a_supported_coupon"] == 2
    assert plan["states_where_a_coupon_wins"] == 1


def test_thin_evidence_counts_coupons_below_min_visits(shop: Shop) -> None:
    """Both save5 in AWAY have 50 past offers; the draw by chance is no choice."""
    run = shop.fill().run
    for min_visits, thin in ((50, 0), (51, 2)):
        settings = run.settings.model_copy(update={"min_visits": min_visits})
        assert read_report(replace(run, settings=settings)).thin == thin


def test_state_table_adds_up(shop: Shop) -> None:
    states = read_report(shop.fill().run).states
    assert states.recency == ["last purchase up to 6 days ago", "last purchase 14–27 days ago"]
    assert states.frequency == ["1 order in 30 days", "2–3 orders in 30 days"]
    assert states.of("last purchase 14–27 days ago", "1 order in 30 days") == (4, 2)
    assert states.of("last purchase 14–27 days ago", "2–3 orders in 30 days") == (0, 0)
    assert states.by_recency(["none", "save5", "save10"]) == {
        "none": [2, 2],
        "save5": [0, 2],
        "save10": [1, 0],
    }


def test_page_states_the_facts(shop: Shop) -> None:
    text = _text(shop.fill().page())
    for fact in (
        "3 of 8 customers get a coupon for 4–10 March 2024: "
        "expected cost 6.75 EUR of a budget of 9.00 EUR.",
        "expect +1.25 EUR profit in these 7 days and +18.75 EUR in the long run",
        "These are estimates, not proof.",
        "given for this run",
        "Save 5 2 0 3.50 EUR +0.25 EUR +13.75 EUR",
        "Save 10 1 1 3.25 EUR +1.00 EUR +5.00 EUR",
        "would be worth a coupon, but the budget, or a limit, brings more with others 2 25%",
        "have not agreed to be contacted 1",
        "The first result can be read from the run of 11 March 2024 on",
        "Tested on decisions from 12 February 2024 on",
        "Transformer (used here) 12.50 EUR 42% 83% 0.510",
        "Gradient boosting 13.75 EUR 35% – 0.550",
        "The same mean for everybody 17.25 EUR 0% 50%",
        "1 of 2 checks passed.",
        "About as many as before. 1,200 rows differ.",
        "Because ada.",
        f"from {shop.run.settings.schema_name}.current_recommendations",
        "redis-cli get winback:current",
    ):
        assert fact in text
    assert "dry run" not in text
    assert "cold start" not in text


def test_page_is_well_formed_and_needs_no_network(shop: Shop) -> None:
    """Oracle: the standard library's HTML parser."""
    page = shop.fill().page()
    tags = _parsed(page)
    assert tags.unclosed == []
    assert tags.names.count("svg") == 5  # one published run has no history to draw
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.names)
    assert "://" not in page
    assert "@import" not in page
    assert all(value.startswith("#") for value in tags.attributes["xlink:href"])
    assert re.findall(r"url\((?!#)", page) == []


def test_dangerous_names_are_escaped(shop: Shop) -> None:
    evil = '"><script>alert(1)</script><img src=x>'
    shop.coupons[1] = {**COUPONS[1], "label": f"$5 {evil}"}
    shop.decided[0] = (evil, *DECIDED[0][1:])
    page = shop.fill().page()
    assert not {"script", "img"} & set(_parsed(page).names)
    assert _text(page).count(evil) >= 3  # coupon table, customer, reason
    assert "&lt;script&gt;" in page


def test_coupons_of_one_label_are_told_apart(shop: Shop) -> None:
    shop.coupons[2] = {**COUPONS[2], "label": "Save 5"}
    assert [line.label for line in read_report(shop.fill().run).coupons] == [
        "Save 5 (save5)",
        "Save 5 (save10)",
    ]


def test_coupon_that_left_the_catalogue_keeps_its_line(shop: Shop) -> None:
    del shop.coupons[1]
    assert "save5 2 0 3.50 EUR" in _text(shop.fill().page())


def test_dry_run_reads_the_work_schema_and_says_so(shop: Shop) -> None:
    shop.status = "dry_run"
    text = _text(shop.fill().page())
    assert "dry run: nothing was published" in text
    assert "3 of 8 customers get a coupon" in text
    assert f"from {shop.run.settings.work_schema}.recommendations" in text
    assert "current_recommendations" not in text
    assert "no decision has been published" in text


def test_cold_start_says_so(shop: Shop) -> None:
    shop.is_cold_start = True
    shop.planned = [(state, coupon, q, 0, coupon == "none") for state, coupon, q, *_ in PLANNED]
    text = _text(shop.fill().page())
    assert "A cold start. No coupon can be judged from the past offers yet." in text
    assert "in 0 of them a coupon may be given" in text


def test_a_list_of_draws_by_chance_is_called_that(shop: Shop) -> None:
    shop.decided = [(*row[:-1], row[1] != "none") for row in DECIDED]
    assert "For nobody is a coupon expected to bring" in _text(shop.fill().page())


def test_a_log_that_proves_nothing_is_not_called_a_cold_start(shop: Shop) -> None:
    shop.decided = [(*row[:-1], row[1] != "none") for row in DECIDED]
    shop.allocation = {"is_proven": False}
    text = _text(shop.fill().page())
    assert "Past offers do not show yet that coupons make customers buy" in text
    assert "For nobody is a coupon expected to bring" not in text
    assert "cold start" not in text


def test_a_coupon_that_pays_off_needs_no_such_advice(shop: Shop) -> None:
    assert "For nobody is a coupon expected to bring" not in _text(shop.fill().page())


def test_nobody_gets_a_coupon(shop: Shop) -> None:
    shop.decided = [("ada", "none", 0.0, 0.0, 0.0, None, "no_purchase_yet", False)]
    shop.coupons, shop.planned = COUPONS[:1], []
    text = _text(shop.fill().page())
    assert "0 of 1 customers get a coupon" in text
    assert "The catalogue holds no coupon." in text
    assert "have not bought anything yet 1 100%" in text


def test_degenerate_fit_is_called_useless(shop: Shop) -> None:
    """The shop's fit saw no repeat purchase."""
    text = _text(shop.fill().page())
    assert "The survival gate is useless here: no customer has bought on a second day yet" in text


WEEK = {  # of treatment against holdout, as the mart has it
    **{"as_of": AS_OF - timedelta(days=7), "treated_customers": 400, "holdout_customers": 50},
    **{"treated_buyers": 180, "holdout_buyers": 20, "treated_profit": 3.4, "holdout_profit": 2.8},
    **{"incremental_profit": 0.6, "lower": -0.2, "upper": 1.4, "sample_ratio_ok": True},
    **{"customers_chosen": 100, "treated_offered": 90, "holdout_offered": 0},
    **{"estimated_lower": 0.1, "estimated_upper": 1.3, "expected_profit": 3.5},
    **{"expected_uplift": 0.75, "expected_cost": 25.0, "coupon_cost": 30.0},
}
TO_DATE = {
    **{"as_of": AS_OF, "first_decision": AS_OF - timedelta(days=14), "days_covered": 14},
    **{"treated_customers": 410, "holdout_customers": 55, "incremental_profit": 1.25},
    **{"lower": 0.5, "upper": 2.0, "total_profit": 512.5, "expected_total_profit": 600.0},
    "sample_ratio_ok": True,
}


def test_holdout_comparison_says_what_the_marts_hold(shop: Shop) -> None:
    shop.performance, shop.to_date = [WEEK], [TO_DATE]
    text = _text(shop.fill().page())
    for fact in (
        "Since 19 February 2024, in 14 days, each of the 410 customers who may get coupons "
        "brought in +1.25 EUR against the 55 who never do (95% interval +0.50 EUR to +2.00 EUR): "
        "+512.50 EUR in all, where the forecasts said +600.00 EUR. So the coupons pay off.",
        "2024-02-26 400 (50) 45% (40%) 3.40 (3.50) 2.80 +0.60 (+0.75) −0.20 to +1.40 "
        "+0.10 to +1.30 30.00 (25.00)",
        "Profit each, EUR",
    ):
        assert fact in text
    for warning in ("beyond chance", "nobody may have got", "by somebody else"):
        assert warning not in text


@pytest.mark.parametrize(
    ("lower", "upper", "words"),
    [(-2.0, -0.1, "cost more than they bring"), (-1.0, 0.1, "this may be chance")],
)
def test_holdout_comparison_in_words(shop: Shop, lower: float, upper: float, words: str) -> None:
    shop.to_date = [{**TO_DATE, "lower": lower, "upper": upper}]
    assert words in read_report(shop.fill().run).incremental_in_words


def test_comparison_that_says_nothing_is_called_that(shop: Shop) -> None:
    shop.performance = [
        {**WEEK, "sample_ratio_ok": False, "treated_offered": 0, "holdout_offered": 9}
    ]
    nobody = dict.fromkeys(("incremental_profit", "lower", "upper", "total_profit"))
    shop.to_date = [{**TO_DATE, **nobody, "holdout_customers": 1, "sample_ratio_ok": None}]
    text = _text(shop.fill().page())
    assert "410 customers may get coupons and 1 are in the comparison group: too few" in text
    assert "not as large as it was drawn, beyond chance" in text
    assert "comparison group were offered coupons by somebody else" in text
    assert "100 coupons were decided in these windows, but no offer was reported" in text


def test_no_holdout_is_a_dash(shop: Shop) -> None:
    missing = ("holdout_profit", "incremental_profit", "lower", "upper", "sample_ratio_ok")
    missing += ("estimated_lower", "estimated_upper")  # and no log to estimate it from
    shop.performance = [{**WEEK, **dict.fromkeys(missing), "holdout_customers": 0}]
    text = _text(shop.fill().page())
    assert "400 (0) 45% (–) 3.40 (3.50) – – (+0.75) – – 30.00 (25.00)" in text


def test_drift_is_shown_with_what_changed_most(shop: Shop) -> None:
    moved = compare("p_alive", [900, 100], [500, 500]).to_dict()
    few = compare("reward", [9], [9]).to_dict()
    came = check_forecast("expected_profit", DECILES).to_dict()
    shop.drift = {
        "quantities": [{**moved, "in_words": "surely gone"}, {**few, "in_words": ""}],
        "forecasts": [came],
        "decided_on": "2024-02-26",
        "in_words": "1 of 2 comparisons have shifted: p_alive.",
    }
    text = _text(shop.fill().page())
    for fact in (
        "1 of 2 comparisons have shifted: p_alive.",
        f"p_alive {moved['psi']:.2f} shifted surely gone: 50%, before 90%",
        "reward – too few rows",
        f"expected_profit {came['predicted']:.3f} {came['actual']:.3f}",
    ):
        assert fact in text


def test_without_the_drift_step_the_page_says_so(shop: Shop) -> None:
    assert "Not checked in this run." in _text(shop.fill().page())


def overlap_report(found: Overlap, logged_share: float) -> dict[str, Any]:
    """As the run records it."""
    rows = [
        {**one.to_dict(), "coupon_id": coupon["coupon_id"], "label": coupon["label"]}
        for one, coupon in zip(found.coupons, COUPONS, strict=True)
    ]
    return {"logged_share": logged_share, "verdict": found.verdict, "coupons": rows}


NAMES = [str(coupon["label"]) for coupon in COUPONS]


def test_overlap_is_shown_by_coupon_and_warned_of_in_the_terminal(shop: Shop) -> None:
    """By hand: of 1,000 decisions 600 without, 300 with save5 where likely, 100 with save10."""
    coupon = np.repeat([0, 1, 2], [600, 300, 100])
    chances = np.full((1000, 3), [0.895, 0.005, 0.1])
    chances[600:900] = [0.095, 0.805, 0.1]
    shop.overlap = overlap_report(overlap(chances, coupon, NAMES), 0.25)
    text = _text(shop.fill().page())
    assert "Save 5 went to particular customers only (separation 1.00)." in text
    for fact in (
        "No coupon 600 600 0.88 9.5% 9.5% 9.5% 89.5% 0.0% 0.0%",
        "Save 5 cannot be read 300 300 1.00 0.5% 0.5% 0.5% 0.5% 70.0% 70.0%",
        "Save 10 100 100 0.50 10.0% 10.0% 10.0% 10.0% 0.0% 0.0%",
        "are estimated, over all decisions; where one was logged (25% of them)",
    ):
        assert fact in text
    assert shop.overlap["verdict"] in _terminal(shop)


def test_overlap_of_logged_draws_needs_no_warning(shop: Shop) -> None:
    coupon = np.repeat([0, 1, 2], [600, 300, 100])
    logged = np.repeat([0.6, 0.3, 0.1], [600, 300, 100])
    shop.overlap = overlap_report(overlap_of_logged(logged, coupon, 3, NAMES), 1.0)
    text = _text(shop.fill().page())
    assert "Every coupon was given across all kinds of customers." in text
    assert "Save 5 300 300 – 30.0% 30.0% 30.0% 30.0% 0.0% 0.0%" in text
    assert "Probabilities as logged" in text
    assert "cannot be read" not in text
    assert shop.overlap["verdict"] not in _terminal(shop)


def test_before_the_first_offer_there_is_nothing_to_tabulate(shop: Shop) -> None:
    rows = [{"coupon_id": name, "label": name, "is_readable": True} for name in ("none", "save5")]
    verdict = "No offers in the log yet."
    shop.overlap = {"logged_share": 0.0, "verdict": verdict, "coupons": rows}
    text = _text(shop.fill().page())
    assert verdict in text
    assert "Worth by lot" not in text
    assert verdict not in _terminal(shop)


def test_limits_are_shown_with_use_and_price(shop: Shop) -> None:
    limits = [
        {"name": "lapsed", "ceiling": 4.0},
        {"name": "a day", "unit": "contacts", "ceiling": 1200},
        {"name": "ten off", "unit": "spend", "floor": 3.0, "ceiling": 50.0},
        {"name": "new", "unit": "contacts", "floor": 5},
    ]
    settings = load_settings({**shop.run.settings.model_dump(), "limits": limits})
    shop.run = replace(shop.run, settings=settings)
    shop.allocation = {
        "limit_prices": {"lapsed": 0.35, "a day": 0.0, "ten off": -1.25},
        "limits_used": {"lapsed": 3.99, "a day": 3.0, "ten off": 3.25},
    }
    text = _text(shop.fill().page())
    for fact in (
        "lapsed expected coupon money – 4.00 EUR 3.99 EUR +0.35 EUR",
        "a day customers with a coupon – 1,200 3 0.00 EUR",
        "ten off expected coupon money 3.00 EUR 50.00 EUR 3.25 EUR −1.25 EUR",
        "new customers with a coupon 5 – – –",
        "one more EUR of coupon money",
    ):
        assert fact in text


def test_a_run_without_limits_has_no_table_of_them(shop: Shop) -> None:
    assert "Limits beside the budget" not in shop.fill().page()


def test_second_published_run_draws_the_history(shop: Shop) -> None:
    shop.fill()
    earlier = replace(shop.run, run_id="manual__0")
    with psycopg.connect(shop.url) as connection:
        connection.execute(
            sql.SQL(
                "insert into {schema}.runs select {run_id}, as_of - 7, status, budget, 4.5, null,"
                " null, metrics, started_at, finished_at from {schema}.runs"
            ).format(schema=earlier.names["schema"], run_id=sql.Literal(earlier.run_id))
        )
    assert [row["expected_spend"] for row in read_report(shop.run).published] == [4.5, 6.75]
    assert _parsed(shop.page()).names.count("svg") == 6


def test_run_that_left_nothing_is_named(shop: Shop) -> None:
    run = replace(shop.fill().run, run_id="other")
    with pytest.raises(NotFittedError, match=r"run other, as_of 2024-03-04.*Run winback_daily"):
        read_report(run)
    (Path(shop.run.settings.artifacts_uri) / "as_of=2024-03-04/manual__1" / SURVIVAL).unlink()
    with pytest.raises(NotFittedError, match=r"survival\.json"):
        read_report(shop.run)


def test_state_bins_may_leave_frequency_out(shop: Shop) -> None:
    shop.decided = [(*row[:5], "category=toys", *row[6:]) for row in DECIDED]
    states = read_report(shop.fill().run).states
    assert (states.recency, states.frequency) == (["all customers"], ["all customers"])
    assert states.of("all customers", "all customers") == (8, 3)
    assert "Which customers get coupons" in shop.page()


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.001, "<1%"), (0.254, "25%"), (1, "100%"), (-0.2, "-20%")]
)
def test_percent_in_words(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(1234.5, "+1,234.50"), (-0.25, "−0.25"), (-0.001, "0.00"), (0.0, "0.00")],
)
def test_signed_amounts(amount: float, text: str) -> None:
    assert signed(amount) == text


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        (date(2024, 3, 4), date(2024, 3, 4), "4 March 2024"),
        (date(2024, 3, 4), date(2024, 3, 10), "4–10 March 2024"),
        (date(2024, 12, 30), date(2025, 1, 5), "30 December 2024 to 5 January 2025"),
    ],
)
def test_spans_of_days(first: date, last: date, text: str) -> None:
    assert span(first, last) == text


def test_figures_show_odd_coupon_names_and_are_reproducible() -> None:
    """Dollar signs are no formula, a leading underscore hides nothing, long names are cut."""
    parts = [("$5 off $50 & more", 1.0), ("_internal", 2.0), ("x" * 60, 3.0)]
    colours = [plots.coupon_colour(position) for position in (1, 2, 9)]
    drawn = plots.spend_svg(parts, colours, 6.0, "EUR")
    assert drawn == plots.spend_svg(parts, colours, 6.0, "EUR")
    text = _text(drawn)
    assert "$5 off $50 & more" in text
    assert "_internal" in text
    assert "x" * 27 + "…" in text
    assert colours[1] in drawn


class _Page(HTMLParser):
    """Tags, attributes and text of a page."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.names: list[str] = []
        self.attributes: dict[str, list[str]] = {"xlink:href": []}
        self.unclosed: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.unclosed:
            self.words.append(data)


def _parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    return parser


def _terminal(shop: Shop) -> str:
    """What the command prints of the run, unwrapped."""
    console = Console(width=10_000, record=True, file=StringIO())
    show_summary(console, read_report(shop.run))
    return console.export_text()


def _text(page: str) -> str:
    """What a reader sees, with single spaces and none before a full stop or comma."""
    text = " ".join(" ".join(_parsed(page).words).split())
    return re.sub(r" ([.,:])", r"\1", text)


def _insert(connection: Any, schema: str, table: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        statement = sql.SQL("insert into {} ({}) values ({})").format(
            sql.Identifier(schema, table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Placeholder, row)),
        )
        connection.execute(statement, row)


def _recommendation(
    mark: Mapping[str, Any],
    customer: str,
    coupon: str,
    cost: float,
    window: float,
    long_run: float,
    state: str | None,
    suppressed: str | None,
    is_exploration: bool,
) -> dict[str, Any]:
    return {
        **mark,
        "customer_id": customer,
        "decision_id": f"{customer} {AS_OF}",
        "coupon_id": coupon,
        "treatment_group": "holdout" if suppressed == "holdout" else "treatment",
        "is_exploration": is_exploration,
        "propensity": 1.0,
        "expected_profit": 10 + window,
        "baseline_profit": 10.0,
        "expected_uplift": window,
        "expected_cost": cost,
        "q_value": 30 + long_run,
        "long_run_uplift": long_run,
        "state": state,
        "reason": f"Because {customer}.",
        "suppression_reason": suppressed,
        "valid_from": AS_OF,
        "valid_to": AS_OF + timedelta(days=7),
        **dict.fromkeys(("model_version", "config_hash", "code_version"), "1"),
        "created_at": MOMENT,
    }


def _q_row(
    mark: Mapping[str, Any], state: str, coupon: str, q: float, visits: int, is_supported: bool
) -> dict[str, Any]:
    figures = {"q_value": q, "visits": visits, "support": visits, "expected_reward": 1.0}
    key = {"state": state, "coupon_id": coupon, "is_supported": is_supported}
    return {**mark, **key, **figures, "future_value": 1.0}
