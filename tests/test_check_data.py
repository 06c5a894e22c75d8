"""Each rule of each suite on a real Postgres: clean rows pass, and one wrong row is caught.

The rows are a generated shop, its features built by dbt, and scores and decisions written in SQL
here. Every case breaks a copy of them in one way and names the one rule that has to notice.
"""

import re
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
import yaml
from shop import build
from sqlalchemy import Engine, event

from winback.expectations.source_contract import source_tables
from winback.expectations.suites import SQL_RULE, SUITES, CheckParameters, load_suite
from winback.models.errors import DataError, NotFittedError, StoreUnavailableError
from winback.models.settings import load_settings
from winback.operators.check_data import CheckDataOperator, check_data
from winback.operators.run import Run
from winback.operators.sample import create_source_tables, generate_sample
from winback.operators.validation import run_checks, validate
from winback.operators.warehouse import ensure_output_tables

BAD_ROWS = Path(__file__).parent / "bad_rows"
RUN_ID = "manual__2024-04-22T00:00:00+00:00"

SCORES = f"""
insert into winback_work.customer_scores
select as_of, '{RUN_ID}', customer_id, 0.9, 0.4, 0.7 from winback.customer_rfm;
"""

# Every third customer who may get one gets save5; 10 of 100 are held out.
DECISIONS = f"""
insert into winback_work.recommendations
select
    as_of, '{RUN_ID}', customer_id, md5(customer_id), coupon_id, 'email', treatment_group,
    false, case when suppression_reason is null then 0.93 else 1 end,
    10 + uplift, 10, uplift, case when coupon_id = 'none' then 0 else 2.5 end,
    40 + 2 * uplift, 2 * uplift, 0.9, 0.4, 'state', 'because', suppression_reason,
    as_of, as_of + 7, 'm', 'c', 'v', now(), next_best, 2 * next_uplift, next_cost,
    'last purchase within 7 days', 2 * uplift
from (
    select
        *,
        case
            when suppression_reason is null then 'none'
            when suppression_reason = 'no_uplift' then 'save5'
        end as next_best,
        case
            when suppression_reason is null then 0
            when suppression_reason = 'no_uplift' then -0.5
        end as next_uplift,
        case
            when suppression_reason is null then 0
            when suppression_reason = 'no_uplift' then 2.5
        end as next_cost,
        case when suppression_reason is null then 'save5' else 'none' end as coupon_id,
        case when suppression_reason is null then 1.5 else 0 end as uplift
    from (
        select
            *,
            case when number % 10 = 0 then 'holdout' else 'treatment' end as treatment_group,
            case
                when not can_contact then 'no_consent'
                when not has_purchased then 'no_purchase_yet'
                when last_coupon_on > as_of - 7 then 'recent_contact'
                when number % 10 = 0 then 'holdout'
                when number % 3 > 0 then 'no_uplift'
            end as suppression_reason
        from (
            select *, row_number() over (order by customer_id) as number
            from winback.customers_known
        ) numbered
    ) reasoned
) decided;
insert into winback_work.q_table
select '{{as_of}}', '{RUN_ID}', state, coupon_id, 1.5, 40, 400, 1.2, 0.3, true
from (values ('a'), ('b')) states (state)
cross join (values ('none'), ('save5')) coupons (coupon_id);
"""


@pytest.fixture(scope="module")
def clean(warehouse_url):
    """The parameters of a run whose tables are all in order, in the schemas of the settings."""
    sample = generate_sample(warehouse_url, customers=80, weeks=16)
    built = build(warehouse_url, "winback", sample.as_of, sources="raw", timezone="UTC")
    assert built.success, built.exception
    ensure_output_tables(warehouse_url, "winback", "winback_work")
    with psycopg.connect(warehouse_url) as connection:
        connection.execute(SCORES)
        connection.execute(DECISIONS.format(as_of=sample.as_of))
    return CheckParameters(sample.as_of, RUN_ID, budget=1000.0)


COPIES = {"raw": "broken_raw", "winback": "broken", "winback_work": "broken_work"}


@pytest.fixture
def broken(warehouse_url, clean):
    """A copy of all tables without constraints, first on the search path, to be spoilt."""
    with psycopg.connect(warehouse_url, autocommit=True) as connection:
        for schema, copy in COPIES.items():
            connection.execute(f"drop schema if exists {copy} cascade; create schema {copy}")
            for table in table_names(connection, schema):
                connection.execute(f"create table {copy}.{table} as table {schema}.{table}")
        connection.execute("update broken_raw.orders set revenue = abs(revenue)")
        connection.execute("set search_path = broken_work, broken, broken_raw")
        yield connection


def table_names(connection, schema):
    query = "select tablename from pg_tables where schemaname = %s"
    return [name for (name,) in connection.execute(query, (schema,))]


def broken_parameters(parameters, **changes):
    places = {"source_schema": "broken_raw", "schema": "broken", "work_schema": "broken_work"}
    return replace(parameters, **places, **changes)


def one_table(suite, table):
    return replace(suite, tables=tuple(t for t in suite.tables if t.name == table))


def same_kind(suite, table, name):
    """One table with the rules that are queries, or those that are not, as the named one is."""
    (only,) = one_table(suite, table).tables
    (is_query,) = {r.type == SQL_RULE for r in only.rules if name in (r.name, r.column)}
    rules = tuple(rule for rule in only.rules if (rule.type == SQL_RULE) == is_query)
    return replace(suite, tables=(replace(only, rules=rules),))


def failures(results):
    return [result for result in results if not result.success]


def bad_rows():
    for suite in SUITES:
        tables = yaml.safe_load((BAD_ROWS / f"{suite}.yml").read_text())
        for table, cases in tables.items():
            yield from ((suite, table, *case.values()) for case in cases)


CASES = list(bad_rows())


LIBRARY_RULE = "expect_column_values_to_be_between"
ALSO_CAUGHT = {
    ("customer_rfm", "recency_days"): ["frequency"],
    ("customer_scores", "scores_are_probabilities"): ["p_purchase_needs_p_alive"],
}


def names(result):
    """A case names a rule by its own name or, for one of the library's, by its column."""
    return {result.expectation, result.column}


@pytest.mark.parametrize(
    ("suite", "table", "rule", "severity", "mutation", "message"),
    [pytest.param(*case, id=f"{case[1]}-{case[2]}-{i}") for i, case in enumerate(CASES)],
)
def test_rule_catches(
    warehouse_url, clean, broken, suite, table, rule, severity, mutation, message
):
    broken.execute(mutation)
    parameters = broken_parameters(clean, budget=None if suite == "sources" else clean.budget)
    results = validate(warehouse_url, same_kind(load_suite(suite, parameters), table, rule))
    found = [result for result in failures(results) if rule in names(result)]
    others = {name for result in failures(results) if result not in found for name in names(result)}
    assert [result.severity for result in found] == [severity]
    assert not others - {None, LIBRARY_RULE, *ALSO_CAUGHT.get((table, rule), ())}
    assert message in str(found[0])


def test_every_rule_is_caught_by_a_case():
    """The null rules of the source contract have a test of their own below."""
    tried = {(suite, table, rule) for suite, table, rule, *_ in CASES}
    for suite in SUITES:
        for table in load_suite(suite, CheckParameters(date(2024, 4, 22), RUN_ID)).tables:
            for rule in table.rules[len(null_columns(suite, table.name)) :]:
                keys = {(suite, table.name, name) for name in (rule.name, rule.column)}
                assert keys & tried, f"no case breaks {table.name}: {rule.name} {rule.column}"


def null_columns(suite, table):
    columns = source_tables()[table] if suite == "sources" else ()
    return [column.name for column in columns if not column.nullable]


@pytest.mark.parametrize("table", source_tables())
def test_null_in_a_required_source_column_is_critical(warehouse_url, clean, broken, table):
    columns = null_columns("sources", table)
    nulls = ", ".join(["null"] * len(columns))
    broken.execute(f"insert into {table} ({', '.join(columns)}) values ({nulls})")
    suite = one_table(load_suite("sources", broken_parameters(clean)), table)
    found = {r.column: r for r in failures(validate(warehouse_url, suite)) if r.column in columns}
    assert {r.severity for r in found.values()} == {"critical"}
    assert list(found) == columns
    assert "(1 row)" in str(found[columns[0]])


def test_generated_shop_passes_all_suites(warehouse_url, clean):
    results = [r for suite in SUITES for r in run_checks(warehouse_url, suite, clean)]
    refunds = [r for r in failures(results) if (r.column, r.severity) == ("revenue", "info")]
    assert failures(results) == refunds
    with psycopg.connect(warehouse_url) as connection:
        count = connection.execute("select count(*) from raw.orders where revenue < 0").fetchone()
    assert [r.unexpected_count for r in refunds] == [*count]


def test_no_table_comes_over(warehouse_url, clean):
    """Oracle: the rows of every answer to Great Expectations, as SQLAlchemy counts them."""
    answered = []

    def count(_, cursor, *__):
        answered.append(cursor.rowcount)

    event.listen(Engine, "after_cursor_execute", count)
    try:
        run_checks(warehouse_url, "sources", clean)
    finally:
        event.remove(Engine, "after_cursor_execute", count)
    with psycopg.connect(warehouse_url) as connection:
        (orders,) = connection.execute("select count(*) from raw.orders").fetchone()
        (refunds,) = connection.execute(
            "select count(*) from raw.orders where revenue < 0"
        ).fetchone()
    assert 2 * refunds < orders
    assert len(answered) > len(source_tables())
    assert max(answered) <= max(refunds, 100)  # the rows that break a rule, and catalogue queries


def test_empty_tables_pass_where_only_orders_must_have_rows(warehouse_url, clean, broken):
    """A shop on its first day: orders, a budget by parameter, and nothing else."""
    broken.execute("truncate order_items, coupon_offers, coupons, customers, budgets")
    results = run_checks(warehouse_url, "sources", broken_parameters(clean))
    assert {r.expectation for r in failures(results)} == {
        "none_is_in_the_catalogue",
        "there_is_a_choice",
    }
    assert {r.severity for r in failures(results)} == {"warning"}


def test_later_rows_change_no_result(warehouse_url, clean, broken):
    """Rows from as_of on cannot stop a run: they are not read."""
    broken.execute(
        "insert into orders values (null, null, %s), ('o000001', 'x', %s)",
        [clean.as_of, clean.as_of + timedelta(1)],
    )
    broken.execute("insert into coupon_offers values ('x', 'x', 'unheard', %s)", [clean.as_of])
    results = run_checks(warehouse_url, "sources", broken_parameters(clean))
    assert failures(results) == []


def test_midnight_is_that_of_the_timezone(warehouse_url, clean, broken):
    """20:30 UTC on the day before is as_of already in Auckland."""
    broken.execute(
        "insert into orders values ('late', 'x', %s::timestamp at time zone 'UTC', 'NaN')",
        [f"{clean.as_of - timedelta(1)} 20:30"],
    )
    utc, auckland = (
        failures(run_checks(warehouse_url, "sources", broken_parameters(clean, timezone=zone)))
        for zone in ("UTC", "Pacific/Auckland")
    )
    assert [r.expectation for r in utc] == ["order_money_is_a_number"]
    assert auckland == []


def test_any_run_id_is_found_again(warehouse_url, clean, broken):
    """Quotes, braces, colons and percent signs go through two templates and three parsers."""
    run_id = "o'brien \\ {x} :y %s %(z)s $q U&'\\0041' ünï"
    broken.execute("update recommendations set run_id = %s", [run_id])
    broken.execute("update q_table set run_id = %s", [run_id])
    parameters = broken_parameters(clean, run_id=run_id)
    assert failures(run_checks(warehouse_url, "recommendations", parameters)) == []


# (SQL on source tables that are as they should be, words of each message)
CONTRACT_CASES = [
    (
        "drop table bad.budgets",
        ["bad.budgets (expect_table_to_exist): Expected a table or view (period_start date,"],
    ),
    ("drop schema bad cascade", [f"bad.{table} (expect_table" for table in source_tables()]),
    (
        "alter table bad.orders drop column revenue",
        ["bad.orders.revenue (expect_column_to_exist): Expected a column of type numeric."],
    ),
    (
        "alter table bad.orders alter ordered_at type timestamp",
        ["bad.orders.ordered_at", "Expected type timestamp with time zone", "timestamp without"],
    ),
    (
        "alter table bad.orders alter revenue type text",
        ["bad.orders.revenue", "Expected type numeric or smallint or", "Came: text."],
    ),
]


@pytest.mark.parametrize(("mutation", "words"), CONTRACT_CASES)
def test_source_tables_that_break_the_contract(warehouse_url, clean, mutation, words):
    with psycopg.connect(warehouse_url) as connection:
        create_source_tables(connection, "bad")
        connection.execute(mutation)
    results = run_checks(warehouse_url, "sources", replace(clean, source_schema="bad"))
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("drop schema if exists bad cascade")
    message = "\n".join(map(str, results))
    assert {(r.severity, r.success) for r in results} == {("critical", False)}
    assert [word for word in words if word not in message] == []
    assert "map your own table onto it with a view" in message


def test_views_and_domains_serve_as_source_tables(warehouse_url, clean, broken):
    broken.execute(
        "create domain broken_raw.euro as numeric(12, 2);"
        "alter table orders alter revenue type broken_raw.euro, alter order_id type varchar(40);"
        "alter table coupons rename to shop_coupons;"
        "create view broken_raw.coupons as select *, 'new' as note from shop_coupons"
    )
    assert failures(run_checks(warehouse_url, "sources", broken_parameters(clean))) == []


def test_missing_feature_table_names_the_step_to_run(warehouse_url, clean):
    with pytest.raises(NotFittedError, match=r"nowhere\.customers_known.* Run dbt build"):
        run_checks(warehouse_url, "features", replace(clean, schema="nowhere"))


def test_rule_that_cannot_be_evaluated_is_critical(warehouse_url, clean, broken):
    broken.execute("alter table customer_scores drop column expected_purchases")
    found = failures(run_checks(warehouse_url, "scores", broken_parameters(clean)))
    assert [r.severity for r in found] == ["critical"]
    assert "could not be evaluated" in str(found[0])
    assert "expected_purchases" in str(found[0])


def test_unreachable_warehouse_says_so_without_the_password(clean):
    url = "postgresql://winback:sesame@127.0.0.1:1/none"
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1") as caught:
        run_checks(url, "sources", clean)
    assert "sesame" not in str(caught.value)


@pytest.fixture
def run(warehouse_url, clean, broken, tmp_path):
    """A run on the copies."""
    places = {"source_schema": "broken_raw", "schema_name": "broken"}
    settings = load_settings({"artifacts_uri": f"file://{tmp_path}", "budget": 1000.0, **places})
    return Run(warehouse_url, clean.as_of.isoformat(), clean.run_id, settings)


def recorded(connection):
    return connection.execute(
        'select expectation, table_name, "column", severity, unexpected_count, unexpected_percent'
        " from data_checks where not success and run_id = %s order by 1, 2, 3",
        [RUN_ID],
    ).fetchall()


def test_passing_step_records_and_reports(broken, run):
    broken.execute("update orders set coupon_cost = -1 where order_id = 'o000001'")
    for _ in range(2):  # a rerun replaces its rows
        summary = check_data(run, "sources")
    ((_, *place, count, percent),) = recorded(broken)
    assert place == ["broken_raw.orders", "coupon_cost", "warning"]
    (orders,) = broken.execute("select count(*) from orders").fetchone()
    assert (count, percent) == (1, pytest.approx(100 / orders))
    assert broken.execute("select count(*) from data_checks").fetchone() == (summary["checks"],)
    assert summary["failed_warnings"] == 1

    report = Path(summary["data_docs"].removeprefix("file://"))
    first_rows = re.findall(r'<td class="(\w+)">', report.read_text())
    assert first_rows == ["warning"] + ["passed"] * (summary["checks"] - 1)
    assert "coupon_cost=-1 (1 row)" in report.read_text()
    links = re.findall(r'href="([^"]+)"', report.read_text())
    pages_per_table, broken_columns = 2, 1
    assert len(links) == pages_per_table * len(source_tables()) + broken_columns
    pages = [(report.parent / link).read_text() for link in links]
    assert any("One order_id is one order" in page for page in pages)
    password = run.url.split("@")[0].rpartition(":")[2]
    assert not any(password in page for page in pages)


def test_source_that_breaks_the_contract_is_reported_as_well(broken, run):
    broken.execute("drop table budgets")
    with pytest.raises(DataError, match=r"Expected a table or view \(period_start date"):
        check_data(run, "sources")
    assert [row[1] for row in recorded(broken)] == ["broken_raw.budgets"]
    (report,) = Path(run.settings.artifacts_uri.removeprefix("file://")).rglob("*.html")
    assert "no such table" in report.read_text()


def test_failing_step_lists_every_critical_failure(broken, run, caplog):
    broken.execute("update recommendations set channel = null, valid_to = valid_from")
    settings = run.settings.model_copy(update={"budget": 5.0})
    with pytest.raises(DataError) as caught:
        check_data(replace(run, settings=settings), "recommendations")
    head, *lines = str(caught.value).splitlines()
    assert re.fullmatch(
        r"2 of \d+ checks of recommendations failed and stop the run; nothing is published:", head
    )
    assert "(expected_spend_is_within_the_budget)" in lines[0]
    assert "budget=5.0 (1 row)" in lines[0]
    assert "(decisions_begin_at_as_of)" in lines[1]
    assert "Run the allocation again. Came: customer_id=c00000 valid_from=2024-04-22" in lines[1]
    assert "warning: broken_work.recommendations (coupons_have_a_channel)" in caplog.text
    assert [row[3] for row in recorded(broken)] == ["warning", "critical", "critical"]


def test_operator_runs_on_an_airflow_connection(run, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", run.url)
    operator = CheckDataOperator(
        task_id="check",
        suite="scores",
        as_of=run.as_of,
        run_id=run.run_id,
        settings=run.settings.model_dump(mode="json"),
        warehouse_conn_id="shop",
    )
    assert "suite" in operator.template_fields
    summary = operator.execute(SimpleNamespace())
    assert (summary["checks"], summary["failed_warnings"]) == (6, 0)
    (link,) = operator.operator_extra_links
    assert link.get_link(operator, ti_key=None) == summary["data_docs"]


def test_server_that_goes_away_in_the_middle_is_worth_a_retry(warehouse_url, clean):
    suite = load_suite("scores", clean)
    (table,) = suite.tables
    kwargs = {"unexpected_rows_query": "select pg_terminate_backend(pg_backend_pid())"}
    rule = replace(table.rules[1], kwargs=kwargs)
    with pytest.raises(StoreUnavailableError, match="terminating connection"):
        validate(warehouse_url, replace(suite, tables=(replace(table, rules=(rule,)),)))
