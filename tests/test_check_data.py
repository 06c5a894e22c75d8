"""Each rule of each suite on a real Postgres: clean rows pass, and one wrong row is caught.

The rows are a generated shop, its features built by dbt, and scores and decisions written in SQL
here. Every case breaks a copy of them in one way and names the one rule that has to notice.
"""

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from shop import build

from winback.expectations.source_contract import source_tables
from winback.expectations.suites import SUITES, CheckParameters, load_suite
from winback.models.errors import DataError, NotFittedError, SettingsError, StoreUnavailableError
from winback.models.settings import load_settings
from winback.operators.check_data import CheckDataOperator, check_data
from winback.operators.run import Run
from winback.operators.sample import create_source_tables, generate_sample
from winback.operators.validation import run_checks, validate
from winback.operators.warehouse import ensure_output_tables

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
    as_of, as_of + 7, 'm', 'c', 'v', now()
from (
    select
        *,
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
select '{{as_of}}', '{RUN_ID}', state, coupon_id, 1.5, 40, 1.2, 0.3, true
from (values ('a'), ('b')) states (state)
cross join (values ('none'), ('save5')) coupons (coupon_id);
"""


@pytest.fixture(scope="module")
def clean(warehouse_url):
    """The parameters of a run whose tables are all in order, in the schemas of the settings."""
    sample = generate_sample(warehouse_url, customers=80, weeks=16)
    build(warehouse_url, "winback", sample.as_of, source_schema="raw", timezone="UTC")
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


def failures(results):
    return [result for result in results if not result.success]


# (suite, table, rule, severity, SQL that breaks it, words of the message)
CASES = [
    # sources
    ("sources", "orders", "orders_are_there", "critical", "delete from orders", "orders=0"),
    (
        "sources", "orders", "orders_before_as_of", "critical",
        "update orders set ordered_at = ordered_at + interval '2 years'", "first_order_at=2026-",
    ),
    (
        "sources", "orders", "order_ids_mean_one_order", "critical",
        "insert into orders select order_id, customer_id, ordered_at, revenue + 1 from orders"
        " order by order_id limit 7",
        "order_id=o000000 different_rows=2, order_id=o000001 different_rows=2",
    ),
    (
        "sources", "orders", "no_identical_orders", "warning",
        "insert into orders select * from orders order by order_id limit 2; "
        "insert into orders select * from orders where order_id = 'o000001'",
        "order_id=o000001 surplus_rows=3 (2 rows)",
    ),
    (
        "sources", "orders", "order_money_is_a_number", "critical",
        "update orders set margin = 'NaN' where order_id = 'o000001'", "order_id=o000001",
    ),
    (
        "sources", "orders", "revenue", "info",
        "update orders set revenue = -5 where order_id = 'o000001'", "revenue=-5 (1 row)",
    ),
    (
        "sources", "orders", "coupon_cost", "warning",
        "update orders set coupon_cost = -1 where order_id = 'o000001'", "coupon_cost=-1 (1 row)",
    ),
    (
        "sources", "orders", "orders_not_in_the_future", "warning",
        "insert into orders values ('x', 'c00001', now() + interval '3 days', 5)", "order_id=x",
    ),
    (
        "sources", "order_items", "items_belong_to_an_order", "warning",
        "insert into order_items values ('ghost', 'books', 1, 5), ('ghost', 'books', 1, 5)",
        "order_id=ghost lines=2 (1 row)",
    ),
    (
        "sources", "coupons", "coupon_ids_mean_one_coupon", "critical",
        "insert into coupons values ('save5', 'other', 7)", "coupon_id=save5 different_rows=2",
    ),
    (
        "sources", "coupons", "no_identical_coupons", "warning",
        "insert into coupons select * from coupons where coupon_id = 'save5'", "surplus_rows=1",
    ),
    (
        "sources", "coupons", "face_value", "critical",
        "update coupons set face_value = -5 where coupon_id = 'save5'",
        "coupon_id=save5 face_value=-5",
    ),
    (
        "sources", "coupons", "contact_cost", "critical",
        "update coupons set contact_cost = -1 where coupon_id = 'save5'", "contact_cost=-1",
    ),
    (
        "sources", "coupons", "none_is_in_the_catalogue", "warning",
        "delete from coupons where coupon_id = 'none'", "add it to the table. Came: coupons=2",
    ),
    (
        "sources", "coupons", "none_costs_nothing", "critical",
        "update coupons set face_value = 3 where coupon_id = 'none'", "face_value=3",
    ),
    (
        "sources", "coupons", "there_is_a_choice", "warning",
        "delete from coupons where coupon_id <> 'none'", "coupons=1",
    ),
    (
        "sources", "coupon_offers", "offer_ids_mean_one_offer", "critical",
        "insert into coupon_offers select offer_id, customer_id, 'none', offered_at, 0.5"
        " from coupon_offers where coupon_id <> 'none' limit 1",
        "different_rows=2 (1 row)",
    ),
    (
        "sources", "coupon_offers", "no_identical_offers", "warning",
        "insert into coupon_offers select * from coupon_offers limit 1", "surplus_rows=1",
    ),
    (
        "sources", "coupon_offers", "offered_coupons_are_known", "critical",
        "update coupon_offers set coupon_id = 'summer' where coupon_id = 'save5'",
        "coupon_id=summer offers=",
    ),
    (
        "sources", "coupon_offers", "propensity_is_a_probability", "critical",
        "update coupon_offers set propensity = 0 where offer_id = 'f0000001'",
        "offer_id=f0000001 propensity=0 (1 row)",
    ),
    (
        "sources", "coupon_offers", "offered_customers_are_known", "warning",
        "update coupon_offers set customer_id = 'nobody' where offer_id = 'f0000001'",
        "customer_id=nobody offers=1",
    ),
    (
        "sources", "customers", "customer_ids_mean_one_customer", "critical",
        "insert into customers select customer_id, created_at, not can_contact from customers"
        " where customer_id = 'c00001'",
        "customer_id=c00001 different_rows=2",
    ),
    (
        "sources", "customers", "no_identical_customers", "warning",
        "insert into customers select * from customers where customer_id = 'c00001'",
        "customer_id=c00001 surplus_rows=1",
    ),
    (
        "sources", "budgets", "amount", "critical",
        "update budgets set amount = -100 where period_start = '2024-02-01'",
        "period_start=2024-02-01 period_end=2024-03-01 amount=-100",
    ),
    (
        "sources", "budgets", "periods_end_after_their_start", "critical",
        "update budgets set period_end = period_start where period_start = '2024-01-01'",
        "period_start=2024-01-01 period_end=2024-01-01",
    ),
    (
        "sources", "budgets", "periods_do_not_overlap", "critical",
        "update budgets set period_end = period_end + 1 where period_start = '2024-02-01'",
        "period_start=2024-03-01 period_end=2024-04-01 earlier_end=2024-03-02 (1 row)",
    ),
    (
        "sources", "budgets", "no_identical_budgets", "warning",
        "insert into budgets select * from budgets limit 1", "surplus_rows=1",
    ),
    (
        "sources", "budgets", "a_budget_covers_as_of", "critical",
        "delete from budgets where period_end > '2024-04-01'",
        "or give the run the parameter budget. Came: last_period_end=2024-04-01",
    ),
    # features
    (
        "features", "customers_known", "expect_table_row_count_to_be_between", "critical",
        "delete from customers_known", "Run dbt build for this as_of; if it ran, the sources",
    ),
    (
        "features", "customers_known", "customer_id", "critical",
        "insert into customers_known select * from customers_known where customer_id = 'c00001'",
        "customer_id=c00001",
    ),
    (
        "features", "customers_known", "can_contact", "critical",
        "update customers_known set can_contact = null where customer_id = 'c00001'", "c00001",
    ),
    (
        "features", "customers_known", "last_coupon_lies_before_as_of", "critical",
        "update customers_known set last_coupon_on = as_of where customer_id = 'c00001'",
        "last_coupon_on=2024-04-22",
    ),
    (
        "features", "customers_known", "known_customers_against_the_run_before", "warning",
        "insert into customers_known (as_of, customer_id)"
        " select as_of - 1, customer_id || suffix from customers_known,"
        " (values (''), ('x')) more (suffix)",
        "as_of_before=2024-04-21",
    ),
    (
        "features", "customer_rfm", "customer_id", "critical",
        "insert into customer_rfm select * from customer_rfm where customer_id = 'c00001'",
        "customer_id=c00001",
    ),
    (
        "features", "customer_rfm", "frequency", "critical",
        "update customer_rfm set frequency = -1 where customer_id ="
        " (select min(customer_id) from customer_rfm where recency_days > 0)",
        "frequency=-1",
    ),
    (
        "features", "customer_rfm", "recency_days", "critical",
        "update customer_rfm set recency_days = -1, last_purchase_on = first_purchase_on - 1,"
        " frequency = -2 where customer_id = 'c00001'",
        "recency_days=-1",
    ),
    (
        "features", "customer_rfm", "age_days", "critical",
        "update customer_rfm set age_days = 0, recency_days = 0, frequency = 0,"
        " first_purchase_on = as_of, last_purchase_on = as_of where customer_id = 'c00001'",
        "Every customer's first purchase lies before as_of 2024-04-22",
    ),
    (
        "features", "customer_rfm", "recency_and_frequency_fit_together", "critical",
        "update customer_rfm set last_purchase_on = last_purchase_on + 1"
        " where customer_id = 'c00001'",
        "customer_id=c00001 frequency=",
    ),
    (
        "features", "customer_rfm", "monetary_value_is_a_number", "critical",
        "update customer_rfm set monetary_value = 'NaN' where customer_id = 'c00001'",
        "customer_id=c00001 monetary_value=nan",
    ),
    (
        "features", "customer_rfm", "one_row_per_known_buyer", "critical",
        "delete from customer_rfm where customer_id = 'c00001';"
        " update customers_known set customer_id = 'y' where customer_id = 'c00002'",
        "customer_id=c00001 is_known_buyer=True has_row=False, "
        "customer_id=c00002 is_known_buyer=False has_row=True, "
        "customer_id=y is_known_buyer=True has_row=False (3 rows)",
    ),
    (
        "features", "rfm_triples", "one_row_per_triple", "critical",
        "insert into rfm_triples select * from rfm_triples limit 1;"
        " insert into customer_rfm select customer_rfm.* from customer_rfm,"
        " (select customers from rfm_triples limit 1) t limit 1",
        "frequency=",
    ),
    (
        "features", "rfm_triples", "customers", "critical",
        "insert into rfm_triples (as_of, frequency, recency_days, age_days, customers)"
        " select as_of, 999, 999, 999, 0 from rfm_triples limit 1",
        "frequency=999 recency_days=999 age_days=999 customers=0",
    ),
    (
        "features", "rfm_triples", "triples_count_every_buyer", "critical",
        "delete from customer_rfm where customer_id = 'c00001'", "customers_in_triples=",
    ),
    (
        "features", "categories", "expect_column_values_to_be_unique", "critical",
        "insert into categories select * from categories where category_id = 1", "category_id=1",
    ),
    (
        "features", "categories", "expect_column_values_to_be_between", "critical",
        "update categories set category_id = 0 where category_id = 1", "category_id=0",
    ),
    (
        "features", "customer_snapshots", "one_row_per_customer_and_date", "critical",
        "insert into customer_snapshots select * from customer_snapshots"
        " where snapshot_date = as_of and customer_id = 'c00001' limit 1",
        "snapshot_date=2024-04-22 customer_id=c00001",
    ),
    (
        "features", "customer_snapshots", "everybody_has_a_snapshot_at_as_of", "critical",
        "delete from customer_snapshots where snapshot_date = as_of and customer_id = 'c00001'",
        "customer_id=c00001 is_in_rfm=True has_snapshot=False (1 row)",
    ),
    (
        "features", "customer_snapshots", "snapshots_end_at_as_of", "critical",
        "update customer_snapshots set snapshot_date = as_of + 7, coupon_id = null,"
        " order_placed = null, order_profit = null, coupon_cost = null, contact_cost = null,"
        " reward = null"
        " where snapshot_date = '2024-02-05' and customer_id ="
        " (select min(customer_id) from customer_snapshots where snapshot_date = '2024-02-05')",
        "snapshot_date=2024-04-29",
    ),
    (
        "features", "customer_snapshots", "counts_and_days_are_possible", "critical",
        "update customer_snapshots set purchases_last_30d = -1"
        " where snapshot_date = as_of and customer_id = 'c00001'",
        "snapshot_date=2024-04-22 customer_id=c00001",
    ),
    (
        "features", "customer_snapshots", "remaining_budget_pct", "critical",
        "update customer_snapshots set remaining_budget_pct = 1.2"
        " where snapshot_date = as_of and customer_id = 'c00001'",
        "remaining_budget_pct=1.2 (1 row)",
    ),
    (
        "features", "customer_snapshots", "category_sequence_is_30_days", "critical",
        "update customer_snapshots set category_sequence = category_sequence[1:29]"
        " where snapshot_date = as_of and customer_id = 'c00001'",
        "customer_id=c00001 days=29",
    ),
    (
        "features", "customer_snapshots", "categories_are_known", "critical",
        "update customer_snapshots set category = 'rockets'"
        " where snapshot_date = as_of and customer_id = 'c00001'",
        "category=rockets snapshots=1",
    ),
    (
        "features", "customer_snapshots", "open_windows_have_no_outcome", "critical",
        "update customer_snapshots set reward = 3"
        " where snapshot_date = as_of and customer_id = 'c00001'",
        "would be learning from the future",
    ),
    (
        "features", "customer_snapshots", "closed_windows_have_an_outcome", "critical",
        "update customer_snapshots set reward = reward + 1"
        " where snapshot_date = '2024-02-05' and customer_id ="
        " (select min(customer_id) from customer_snapshots where snapshot_date = '2024-02-05')",
        "snapshot_date=2024-02-05",
    ),
    (
        "features", "customer_snapshots", "logged_propensities_are_probabilities", "critical",
        "update customer_snapshots set propensity = 1.5"
        " where snapshot_date = '2024-04-15' and customer_id = 'c00001'",
        "propensity=1.5",
    ),
    (
        "features", "customer_snapshots", "snapshots_against_the_date_before", "warning",
        "insert into customer_snapshots (snapshot_date, customer_id)"
        " select '2024-04-21', customer_id || suffix from customer_snapshots,"
        " (values (''), ('x')) more (suffix) where snapshot_date = as_of",
        "date_before=2024-04-21",
    ),
    # scores
    (
        "scores", "customer_scores", "customer_id", "critical",
        "insert into customer_scores select * from customer_scores where customer_id = 'c00001'",
        "customer_id=c00001",
    ),
    (
        "scores", "customer_scores", "scores_are_probabilities", "critical",
        "update customer_scores set p_purchase = 'NaN' where customer_id = 'c00001';"
        " update customer_scores set p_purchase = -0.1 where customer_id = 'c00002';"
        " update customer_scores set p_purchase = null where customer_id = 'c00003'",
        "(3 rows)",
    ),
    (
        "scores", "customer_scores", "p_purchase_needs_p_alive", "critical",
        "update customer_scores set p_purchase = 0.95 where customer_id = 'c00001'",
        "p_alive=0.9 p_purchase=0.95",
    ),
    (
        "scores", "customer_scores", "expected_purchases_are_possible", "critical",
        "update customer_scores set expected_purchases = 'Infinity'"
        " where customer_id = 'c00001'",
        "expected_purchases=inf",
    ),
    (
        "scores", "customer_scores", "one_score_per_buyer", "critical",
        "delete from customer_scores where customer_id = 'c00001'",
        "customer_id=c00001 is_in_rfm=True has_score=False",
    ),
    (
        "scores", "customer_scores", "p_alive", "info",
        "update customer_scores set p_alive = 1 where customer_id = 'c00001'", "p_alive=1.0",
    ),
    # recommendations
    (
        "recommendations", "recommendations", "customer_id", "critical",
        "insert into recommendations select * from recommendations where customer_id = 'c00001';"
        " update recommendations set decision_id = ctid::text where customer_id = 'c00001'",
        "customer_id=c00001",
    ),
    (
        "recommendations", "recommendations", "decision_id", "critical",
        "update recommendations set decision_id = 'd' where customer_id in ('c00001', 'c00002')",
        "customer_id=c00001 decision_id=d",
    ),
    (
        "recommendations", "recommendations", "one_decision_per_known_customer", "critical",
        "delete from recommendations where customer_id = 'c00001'",
        "customer_id=c00001 is_known=True has_decision=False (1 row)",
    ),
    (
        "recommendations", "recommendations", "one_decision_per_known_customer", "critical",
        "delete from customers_known where customer_id = 'c00001'",
        "customer_id=c00001 is_known=False has_decision=True (1 row)",
    ),
    (
        "recommendations", "recommendations", "one_decision_per_known_customer", "critical",
        "update recommendations set run_id = 'an earlier run'", "is_known=True has_decision=False",
    ),
    (
        "recommendations", "recommendations", "recommended_coupons_are_known", "critical",
        "update recommendations set coupon_id = 'summer' where coupon_id = 'save5'",
        "coupon_id=summer customers=",
    ),
    (
        "recommendations", "recommendations", "propensities_are_probabilities", "critical",
        "update recommendations set propensity = 0 where customer_id ="
        " (select min(customer_id) from recommendations where coupon_id = 'save5')",
        "propensity=0.0",
    ),
    (
        "recommendations", "recommendations", "treatment_group", "critical",
        "update recommendations set treatment_group = 'control' where customer_id = 'c00001'",
        "customer_id=c00001 treatment_group=control",
    ),
    (
        "recommendations", "recommendations", "suppression_reason", "critical",
        "update recommendations set suppression_reason = 'mood' where customer_id ="
        " (select min(customer_id) from recommendations where suppression_reason is not null)",
        "suppression_reason=mood",
    ),
    (
        "recommendations", "recommendations", "holdout_and_suppressed_get_none", "critical",
        "update recommendations set treatment_group = 'holdout', propensity = 1"
        " where coupon_id = 'save5'",
        "treatment_group=holdout suppression_reason=None",
    ),
    (
        "recommendations", "recommendations", "none_is_certain_where_nothing_may_be_sent",
        "critical",
        "update recommendations set propensity = 0.9 where treatment_group = 'holdout'",
        "propensity=0.9 treatment_group=holdout",
    ),
    (
        "recommendations", "recommendations", "no_coupon_without_consent", "critical",
        "update customers_known set can_contact = false", "do not send these coupons",
    ),
    (
        "recommendations", "recommendations", "no_coupon_soon_after_another", "critical",
        "update customers_known set last_coupon_on = as_of - 6", "within 7 days",
    ),
    (
        "recommendations", "recommendations", "expected_spend_is_within_the_budget", "critical",
        "update recommendations set expected_cost = 500 where coupon_id = 'save5'",
        "budget=1000.0",
    ),
    (
        "recommendations", "recommendations", "money_adds_up", "critical",
        "update recommendations set expected_uplift = expected_uplift + 0.01"
        " where customer_id = 'c00001'",
        "customer_id=c00001",
    ),
    (
        "recommendations", "recommendations", "money_adds_up", "critical",
        "update recommendations set expected_cost = 1 where customer_id ="
        " (select min(customer_id) from recommendations where coupon_id = 'none')",
        "coupon_id=none",
    ),
    (
        "recommendations", "recommendations", "values_are_numbers", "critical",
        "update recommendations set q_value = 'NaN' where customer_id = 'c00001'", "q_value=nan",
    ),
    (
        "recommendations", "recommendations", "probabilities_are_probabilities", "critical",
        "update recommendations set p_alive = 1.1 where customer_id = 'c00001'", "p_alive=1.1",
    ),
    (
        "recommendations", "recommendations", "decisions_begin_at_as_of", "critical",
        "update recommendations set valid_from = valid_from + 1 where customer_id = 'c00001'",
        "valid_from=2024-04-23",
    ),
    (
        "recommendations", "recommendations", "coupons_have_a_channel", "warning",
        "update recommendations set channel = null where coupon_id = 'save5'",
        "Fill channel in the catalogue",
    ),
    (
        "recommendations", "recommendations", "chosen_coupons_are_worth_it", "warning",
        "update recommendations set long_run_uplift = -1 where coupon_id = 'save5'",
        "long_run_uplift=-1.0",
    ),
    (
        "recommendations", "recommendations", "decisions_against_the_run_before", "warning",
        "insert into broken.recommendations (as_of, customer_id, coupon_id)"
        " select as_of - 1, customer_id || suffix, coupon_id from recommendations,"
        " (values (''), ('x')) more (suffix)",
        "as_of_before=2024-04-21",
    ),
    (
        "recommendations", "q_table", "one_row_per_state_and_coupon", "critical",
        "insert into q_table select * from q_table where state = 'a' and coupon_id = 'none'",
        "state=a coupon_id=none rows=2 (1 row)",
    ),
    (
        "recommendations", "q_table", "expect_table_row_count_to_be_between", "warning",
        "delete from q_table", "Came: 0.",
    ),
    (
        "recommendations", "q_table", "q_values_are_numbers", "critical",
        "update q_table set q_value = '-Infinity' where state = 'a'", "q_value=-inf",
    ),
]  # fmt: skip


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
    results = validate(warehouse_url, one_table(load_suite(suite, parameters), table))
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
    create_source_tables(warehouse_url, "bad")
    with psycopg.connect(warehouse_url) as connection:
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
def run(warehouse_url, clean, tmp_path):
    settings = load_settings({"artifacts_uri": f"file://{tmp_path}", "budget": 1000.0})
    return Run(warehouse_url, clean.as_of.isoformat(), clean.run_id, settings)


def recorded(url, *, suite):
    with psycopg.connect(url) as connection:
        return connection.execute(
            'select expectation, table_name, "column", severity, success, unexpected_count,'
            " unexpected_percent from winback.data_checks where suite = %s and run_id = %s"
            " and not success order by 1, 2, 3",
            (suite, RUN_ID),
        ).fetchall()


def test_passing_step_records_and_reports(warehouse_url, run):
    for _ in range(2):  # a rerun replaces its rows
        summary = check_data(run, "sources")
    ((_, table, column, severity, _, count, percent),) = recorded(warehouse_url, suite="sources")
    assert (table, column, severity) == ("raw.orders", "revenue", "info")
    assert count >= 1
    assert 0 < percent < 10
    assert summary["failed_warnings"] == 0
    with psycopg.connect(warehouse_url) as connection:
        rows = connection.execute("select count(*) from winback.data_checks").fetchone()
    assert rows == (summary["checks"],)
    report = Path(summary["data_docs"].removeprefix("file://"))
    assert "sources-orders" in report.read_text()
    pages = list(report.parent.rglob("*.html"))
    assert any("One order_id is one order" in page.read_text() for page in pages)
    password = warehouse_url.split("@")[0].rpartition(":")[2]
    assert [page for page in pages if password in page.read_text()] == []


def test_failing_step_lists_every_critical_failure(warehouse_url, run, caplog):
    settings = load_settings({"artifacts_uri": run.settings.artifacts_uri, "budget": 5.0})
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("update winback_work.recommendations set channel = null")
        connection.execute("update winback_work.customer_scores set p_alive = 2")
    with pytest.raises(DataError) as caught:
        check_data(replace(run, settings=settings), "recommendations")
    message = str(caught.value)
    assert message.startswith("1 of 21 checks of recommendations failed and stop the run; nothing")
    assert "expected_spend_is_within_the_budget" in message
    assert "Run the allocation again" in message
    assert "budget=5.0" in message
    assert "channel" not in message, "warnings are logged, they do not stop"
    assert "warning: winback_work.recommendations (coupons_have_a_channel)" in caplog.text
    rows = recorded(warehouse_url, suite="recommendations")
    assert [row[3] for row in rows] == ["warning", "critical"]


def test_operator_runs_on_an_airflow_connection(warehouse_url, run, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", warehouse_url)
    operator = CheckDataOperator(
        task_id="check",
        suite="sources",
        as_of=run.as_of,
        run_id=run.run_id,
        settings=run.settings.model_dump(mode="json"),
        warehouse_conn_id="shop",
    )
    assert "suite" in operator.template_fields
    summary = operator.execute(SimpleNamespace())
    assert set(summary) == {"checks", "failed_warnings", "data_docs"}


def test_operator_with_an_unknown_suite(run):
    with pytest.raises(SettingsError, match="expected one of sources"):
        check_data(run, "orders")
