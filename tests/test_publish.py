"""Publishing is all or nothing, whatever breaks and when: real servers, really broken."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from pipeline import Shop, checked_template, copy_of

from winback.models.errors import NotFittedError, StoreUnavailableError
from winback.operators.bench_serving import as_rows
from winback.operators.q_store import CURRENT, PREVIOUS, QStore, connect, meta_key, table_key
from winback.operators.warehouse import ensure_output_tables

DAY_BEFORE = "2024-07-28"
UNREACHABLE = "127.0.0.1:1"  # nobody listens on port 1
SECONDS = 60  # patience with a loaded machine

# What a trigger on the table runs does to the transaction that publishes. At the insert the rows
# are replaced and Redis is still untouched; at the commit Redis serves the new version already.
LOSE_CONNECTION = "perform pg_terminate_backend(pg_backend_pid());"
WAIT_FOR_TEST = "perform pg_advisory_lock(42);"
AT_THE_INSERT = "create trigger t before insert on winback.runs for each row execute function f()"
AT_THE_COMMIT = """
create constraint trigger t after insert on winback.runs
deferrable initially deferred for each row execute function f()
"""
COPY_WORK = """
insert into winback_work.{table}
select (jsonb_populate_record(r, jsonb_build_object({changes}))).* from {source}.{table} as r
"""
EARLIER = {
    "customer_scores": "'as_of', as_of - 1, 'run_id', 'earlier'",
    "q_table": "'as_of', as_of - 1, 'run_id', 'earlier', 'q_value', q_value - 1",
    "recommendations": "'as_of', as_of - 1, 'run_id', 'earlier', 'decision_id', 'e' || decision_id",
}
PUBLISH = """
import sys
from winback.models.settings import load_settings
from winback.operators.publish import publish
from winback.operators.run import Run
url, redis_url, as_of = sys.argv[1:]
publish(Run(url, as_of, "first", load_settings()), redis_url, {}, as_of)
"""


@pytest.fixture
def shop(servers) -> Iterator[Shop]:
    """A run for the day before is published, the run ``first`` is ready to be."""
    with copy_of(checked_template(servers), servers) as shop:
        add_earlier_run(shop)
        yield shop


def add_earlier_run(shop: Shop) -> None:
    """Publish what `first` decided, a little changed, as the run ``earlier`` of the day before."""
    for table, changes in EARLIER.items():
        shop.query(COPY_WORK.format(table=table, source="winback_work", changes=changes))
    shop.daily_run("earlier", as_of=DAY_BEFORE).execute("publish")


def break_publication(shop: Shop, what: str, when: str) -> None:
    shop.query(
        "create function f() returns trigger language plpgsql as "
        f"$$ begin {what} return new; end $$"
    )
    shop.query(when)


def mend(shop: Shop) -> None:
    shop.query("drop function f cascade")


def versions(shop: Shop) -> list[str]:
    return shop.redis.mget(CURRENT, PREVIOUS)


def test_one_date_is_replaced_and_all_others_stay(shop):
    before = shop.published()
    result = shop.daily_run().execute("publish")
    after = shop.published()
    assert result["status"] == "published"
    assert versions(shop) == [result["redis_version"], before["pointers"][0]]
    for table in ("recommendations", "q_table", "customer_scores", "decisions"):
        assert set(before[table]) < set(after[table]), table
        assert len(after[table]) == 2 * len(before[table])


def test_columns_that_an_older_warehouse_lacks_are_added_alike_on_both_sides(shop):
    """Publishing copies whole rows: oracle is the catalogue of a warehouse made anew."""
    names = ("winback", "winback_work")
    made_anew = [columns_of(shop, schema) for schema in names]
    assert made_anew[0] == made_anew[1]
    for schema in names:
        shop.query(
            f"alter table {schema}.recommendations drop next_best_coupon_id cascade, "
            "drop next_best_long_run_uplift, drop next_best_expected_cost, drop situation, "
            "drop net_value, drop next_best_behind, drop next_best_limits"
        )
        assert len(columns_of(shop, schema)) == len(made_anew[0]) - 7
    for _ in range(2):
        ensure_output_tables(shop.url, *names)
        assert [columns_of(shop, schema) for schema in names] == made_anew


def test_a_warehouse_that_has_some_of_the_later_columns_gets_the_rest(shop):
    """Both sides alike, also where one has them already: oracle as before."""
    names = ("winback", "winback_work")
    made_anew = [columns_of(shop, schema) for schema in names]
    shop.query(
        "alter table winback.recommendations drop next_best_behind cascade, drop next_best_limits"
    )
    ensure_output_tables(shop.url, *names)
    assert [columns_of(shop, schema) for schema in names] == made_anew


def test_policy_evaluations_of_an_older_warehouse_get_their_later_columns(shop):
    made_anew = columns_of(shop, "winback", "policy_evaluations")
    shop.query("alter table winback.policy_evaluations drop alarm, drop propensities")
    ensure_output_tables(shop.url, "winback", "winback_work")
    assert columns_of(shop, "winback", "policy_evaluations") == made_anew
    assert [name for name, _ in made_anew[-2:]] == ["alarm", "propensities"]


def columns_of(shop: Shop, schema: str, table: str = "recommendations") -> list[tuple[str, str]]:
    return shop.query(
        "select column_name, data_type from information_schema.columns "
        "where table_schema = %s and table_name = %s order by ordinal_position",
        schema,
        table,
    )


def test_redis_serves_what_the_table_holds(shop):
    shop.daily_run().execute("publish")
    version = shop.redis.get(CURRENT)
    rows = shop.query(
        "select state, coupon_id, q_value from winback.q_table where as_of = %s and is_supported",
        shop.as_of,
    )
    expected: dict[str, dict[str, float]] = {}
    for state, coupon_id, value in rows:
        expected.setdefault(state, {})[coupon_id] = value
    served = shop.redis.hgetall(table_key(version))
    assert {state: json.loads(values) for state, values in served.items()} == expected
    meta = json.loads(shop.redis.get(meta_key(version)))
    assert (meta["as_of"], meta["run_id"], meta["rows"]) == (shop.as_of, "first", len(expected))
    assert {"state_space", "catalogue", "checksum"} <= meta.keys()


def test_a_rerun_replaces_its_date_but_not_what_was_decided_first(shop):
    shop.daily_run().execute("publish")
    first = shop.query("select * from winback.decisions order by decision_id")
    again = "'run_id', 'second', 'reason', 'changed'"
    shop.query("delete from winback.recommendations where as_of < %s", shop.as_of)
    shop.query(COPY_WORK.format(table="recommendations", source="winback", changes=again))
    shop.daily_run("second").execute("publish")
    rows = "select distinct run_id, reason from winback.recommendations where as_of = %s"
    assert shop.query(rows, shop.as_of) == [("second", "changed")]
    assert shop.query("select * from winback.decisions order by decision_id") == first


@pytest.mark.parametrize("when", [AT_THE_INSERT, AT_THE_COMMIT], ids=["insert", "commit"])
def test_a_warehouse_that_goes_away_changes_nothing_and_a_retry_completes(shop, when):
    before = shop.published()
    break_publication(shop, LOSE_CONNECTION, when)
    with pytest.raises(StoreUnavailableError, match=r"the warehouse at .* does not answer"):
        shop.daily_run().execute("publish")
    assert shop.published() == before
    mend(shop)
    assert shop.daily_run().execute("publish")["status"] == "published"
    assert shop.redis.get(CURRENT).startswith(shop.as_of)


def test_the_first_publication_of_all_leaves_nothing_when_its_commit_fails(servers):
    with copy_of(checked_template(servers), servers) as shop:
        before = shop.published()
        break_publication(shop, LOSE_CONNECTION, AT_THE_COMMIT)
        with pytest.raises(StoreUnavailableError):
            shop.daily_run().execute("publish")
        assert shop.published() == before
        assert versions(shop) == [None, None]


def test_a_failed_commit_keeps_the_version_to_roll_back_to(shop):
    """Oracle: the pointers and the expiry of the three versions before the failure."""
    store = QStore(connect(shop.redis_url), keep_seconds=60)
    oldest = versions(shop)[0]
    store.activate(store.stage("2024-07-20", as_rows([("s", {"none": 1.0})]), {}))
    served = versions(shop)
    break_publication(shop, LOSE_CONNECTION, AT_THE_COMMIT)
    with pytest.raises(StoreUnavailableError):
        shop.daily_run().execute("publish")
    assert versions(shop) == served
    assert served[1] == oldest
    assert [shop.redis.ttl(table_key(name)) for name in served] == [-1, -1]
    staged = list(shop.redis.scan_iter("winback:q:2024-07-29-*"))
    assert shop.redis.ttl(staged[0]) > 0, "what was never served must not stay for good"


REFUSALS = {  # what Redis is told, and what makes it well again
    "to store": ("config set maxmemory 1", "config set maxmemory 0"),
    "to move the pointer": ("acl setuser default -multi -exec", "acl setuser default +@all"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_redis_that_refuses_changes_nothing(shop, refusal):
    before = shop.published()
    breakage, remedy = REFUSALS[refusal]
    shop.redis.execute_command(*breakage.split())
    try:
        with pytest.raises(StoreUnavailableError, match=r"Redis at .* does not answer"):
            shop.daily_run().execute("publish")
    finally:
        shop.redis.execute_command(*remedy.split())
    assert shop.published() == before


@pytest.mark.parametrize("store", ["warehouse", "redis"])
def test_an_unreachable_store_changes_nothing(shop, monkeypatch, store):
    before = shop.published()
    run = shop.daily_run()
    run.execute("start_run")
    scheme = {"warehouse": "postgres", "redis": "redis"}[store]
    name = f"AIRFLOW_CONN_WINBACK_{store.upper()}"
    monkeypatch.setenv(name, f"{scheme}://winback:secret@{UNREACHABLE}/0")
    with pytest.raises(StoreUnavailableError, match=UNREACHABLE) as failure:
        run.execute("publish")
    assert "secret" not in str(failure.value)
    assert shop.published() == before


def test_nothing_to_publish_is_an_error_that_changes_nothing(shop):
    shop.query("truncate winback_work.recommendations")
    before = shop.published()
    with pytest.raises(NotFittedError, match="Run allocate_coupons first"):
        shop.daily_run().execute("publish")
    assert shop.published() == before


@pytest.mark.parametrize("when", [AT_THE_INSERT, AT_THE_COMMIT], ids=["insert", "commit"])
def test_killed_in_the_middle_a_retry_completes(shop, when):
    """kill -9 while the transaction is open; then the same run is tried again."""
    before = shop.published()
    break_publication(shop, WAIT_FOR_TEST, when)
    with psycopg.connect(shop.url, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(42)")
        publisher = start_publication(shop)
        wait_until_it_waits(shop)
        publisher.send_signal(signal.SIGKILL)
        publisher.wait()
        holder.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where wait_event = 'advisory' and datname = current_database()"
        )
    mend(shop)
    unchanged = ("recommendations", "q_table", "customer_scores", "decisions")
    after = shop.published()
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    if when == AT_THE_INSERT:  # at the commit Redis has moved on; the retry brings both together
        assert after == before
    assert shop.daily_run().execute("publish")["status"] == "published"
    assert versions(shop)[1] == before["pointers"][0]
    assert len(shop.published()["recommendations"]) == 2 * len(before["recommendations"])


def test_a_retry_after_a_commit_whose_answer_was_lost_serves_the_same_run(shop):
    """The rows have moved already: the retry has only Redis to bring up to date."""
    version = shop.daily_run().execute("publish")["redis_version"]
    rows = shop.published()["recommendations"]
    QStore(connect(shop.redis_url), keep_seconds=60).roll_back()
    assert shop.daily_run().execute("publish") == {"status": "published", "redis_version": version}
    assert shop.redis.get(CURRENT) == version
    assert shop.published()["recommendations"] == rows


def start_publication(shop: Shop) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PUBLISH, shop.url, shop.redis_url, shop.as_of]
    return subprocess.Popen(command)


def wait_until_it_waits(shop: Shop) -> None:
    deadline = time.monotonic() + SECONDS
    waiting = "select 1 from pg_stat_activity where wait_event = 'advisory' and datname = %s"
    while not shop.query(waiting, shop.database):
        assert time.monotonic() < deadline, "the publication never came to its last step"
        time.sleep(0.05)


def test_a_reader_never_sees_a_mixture_of_versions(redis_url):
    """A reader polls during 50 publications; every value names the version that it belongs to."""
    store = QStore(connect(redis_url), keep_seconds=60)
    states = [f"s{number}" for number in range(200)]
    table = as_rows([(state, {"none": 0.0}) for state in states])
    store.activate(store.stage("2024-01-01", table, {"run_id": "0"}))
    ended, mixtures, reads = threading.Event(), [], []

    def poll() -> None:
        client = connect(redis_url)
        while not ended.is_set():
            version = client.get(CURRENT)
            meta = json.loads(client.get(meta_key(version)))
            rows = client.hgetall(table_key(version))
            values = {json.loads(row)["none"] for row in rows.values()}
            reads.append(version)
            if len(rows) != meta["rows"] or values != {float(meta["run_id"])}:
                mixtures.append((version, meta, values))

    reader = threading.Thread(target=poll)
    reader.start()
    for number in range(1, 51):
        table = as_rows([(state, {"none": float(number)}) for state in states])
        store.activate(store.stage("2024-01-01", table, {"run_id": str(number)}))
    ended.set()
    reader.join()
    assert mixtures == []
    assert len(set(reads)) > 5, "the reader must have seen several versions"


def test_a_dry_run_is_recorded_and_publishes_nothing(shop):
    before = shop.published()
    run = shop.daily_run("trial", publish=False)
    assert run.execute("publish") == {"status": "dry_run"}
    assert run.execute("finish_run") == {"status": "dry_run"}
    assert shop.published() == before
    assert shop.query("select status from winback.runs where run_id = 'trial'") == [("dry_run",)]
