"""Versions of the Q-table in a real Redis, and the reader that follows them."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import redis
from pipeline import Shop, checked_template, copy_of

from winback.models.errors import NotFittedError, StoreUnavailableError
from winback.models.states import StateSpace
from winback.operators.bench_serving import as_rows
from winback.operators.q_store import (
    CURRENT,
    PREVIOUS,
    UPLOAD_SECONDS,
    CouponReader,
    QStore,
    connect,
    meta_key,
    table_key,
)

KEEP_SECONDS = 1000
STATES = [("warm", {"none": 1.0, "save5": 2.0}), ("cold", {"none": 3.0})]


@pytest.fixture
def store(redis_url) -> QStore:
    return QStore(connect(redis_url), KEEP_SECONDS)


def publish(store: QStore, value: float) -> str:
    version = store.stage("2024-07-29", as_rows([("warm", {"none": value})]), {"run_id": "r"})
    store.activate(version)
    return version


def time_to_live(store: QStore, version: str) -> tuple[int, int]:
    """Seconds left of a version's rows and description; -1: for good, -2: gone."""
    return store.client.ttl(table_key(version)), store.client.ttl(meta_key(version))


def test_a_version_is_stored_as_the_contract_says(store):
    version = store.stage("2024-07-29", as_rows(STATES), {"run_id": "r1"})
    rows = store.client.hgetall(table_key(version))
    assert {key: json.loads(value) for key, value in rows.items()} == dict(STATES)
    meta = json.loads(store.client.get(meta_key(version)))
    assert (meta["as_of"], meta["run_id"], meta["rows"]) == ("2024-07-29", "r1", 2)
    assert store.client.get(CURRENT) is None, "staged is not served"
    store.activate(version)
    assert store.client.get(CURRENT) == version


def test_equal_content_is_the_same_version_in_any_order(store):
    first = store.stage("2024-07-29", as_rows(STATES), {})
    assert store.stage("2024-07-29", as_rows(STATES[::-1]), {}) == first
    assert store.stage("2024-07-30", as_rows(STATES), {}) != first


def test_only_the_current_and_the_previous_version_stay_for_good(store):
    versions = [publish(store, value) for value in range(4)]
    assert store.client.mget(CURRENT, PREVIOUS) == [versions[3], versions[2]]
    for version in versions[2:]:
        assert time_to_live(store, version) == (-1, -1)
    for version in versions[:2]:
        assert all(0 < seconds <= KEEP_SECONDS for seconds in time_to_live(store, version))


def test_publishing_the_current_version_again_keeps_the_previous_one(store):
    first, second = publish(store, 1), publish(store, 2)
    publish(store, 2)
    assert store.client.mget(CURRENT, PREVIOUS) == [second, first]


def test_back_and_forth(store):
    first, second = publish(store, 1), publish(store, 2)
    assert store.roll_back() == first
    assert store.client.mget(CURRENT, PREVIOUS) == [first, second]
    assert store.roll_back() == second
    third = publish(store, 3)
    assert store.client.mget(CURRENT, PREVIOUS) == [third, second]
    assert time_to_live(store, second) == (-1, -1)


def test_without_a_previous_version_there_is_no_way_back(store):
    publish(store, 1)
    with pytest.raises(NotFittedError, match="found none"):
        store.roll_back()


def test_a_previous_version_that_was_deleted_is_not_served(store):
    first, second = publish(store, 1), publish(store, 2)
    store.client.delete(table_key(first), meta_key(first))
    with pytest.raises(NotFittedError, match=first):
        store.roll_back()
    assert store.client.get(CURRENT) == second


def test_taking_back_an_activation_leaves_a_later_one_alone(store):
    publish(store, 1)
    before = store.served()
    second, third = publish(store, 2), publish(store, 3)
    store.restore(second, before)
    assert store.served() == (third, second)
    store.restore(third, before)
    assert store.served() == before


class TamperedRedis(redis.Redis):
    """A real Redis in which something happens to what was uploaded before it is verified."""

    def pipeline(self, *args, **kwargs):
        (upload,) = self.scan_iter("winback:upload:*")
        self.tamper(upload)
        return super().pipeline(*args, **kwargs)

    def tamper(self, upload):
        self.hdel(upload, "cold")


class DamagedRedis(TamperedRedis):
    def tamper(self, upload):
        self.hset(upload, "cold", "broken")


@pytest.mark.parametrize(("kind", "held"), [(TamperedRedis, 1), (DamagedRedis, 2)])
def test_content_that_did_not_arrive_is_noticed(redis_url, kind, held):
    store = QStore(kind.from_url(redis_url, decode_responses=True), KEEP_SECONDS)
    with pytest.raises(StoreUnavailableError, match=rf"holds {held} states .* 2 others were sent"):
        store.stage("2024-07-29", as_rows(STATES), {})
    (upload,) = store.client.keys()
    assert 0 < store.client.ttl(upload) <= UPLOAD_SECONDS, "what is left of it goes by itself"


def test_a_table_of_many_commands_arrives_whole(redis_url):
    """Oracle: one HSET per state, by redis-py; texts beyond ASCII and the protocol's line ends."""
    client = connect(redis_url)
    states = [(f"category=Käse\r\n{n}", {"none": n / 7, "5 €": -n * 1e17}) for n in range(4_321)]
    for state, values in states:
        client.hset("one by one", state, json.dumps(values, ensure_ascii=False))
    version = QStore(client, KEEP_SECONDS).stage("2024-07-29", as_rows(states), {})
    found, expected = (client.hgetall(key) for key in (table_key(version), "one by one"))
    assert {state: json.loads(values) for state, values in found.items()} == dict(states)
    assert found.keys() == expected.keys()


def test_a_table_without_states_can_be_served(redis_url):
    store = QStore(connect(redis_url), KEEP_SECONDS)
    version = store.stage("2024-07-29", as_rows([]), {})
    store.activate(version)
    assert json.loads(store.client.get(meta_key(version)))["rows"] == 0
    assert store.client.hgetall(table_key(version)) == {}


def test_damaged_content_is_repaired_by_staging_again(store):
    version = publish(store, 1)
    store.client.hset(table_key(version), "warm", "broken")
    publish(store, 1)
    assert store.client.hgetall(table_key(version)) == {"warm": '{"none":1}'}


def test_the_reader_builds_the_keys_that_the_planner_wrote(store):
    """The description keeps the order of the features, which is not the alphabet's."""
    space = StateSpace({"purchases_last_30d": (1,), "avg_order_value": (10,)})
    customer = {"purchases_last_30d": 2, "avg_order_value": 5.0, "category": "toys"}
    values = [(space.key(customer), {"none": 0.0, "save5": 1.0})]
    store.activate(store.stage("2024-07-29", as_rows(values), {"state_space": space.to_dict()}))
    assert CouponReader(store.client).coupon(customer) == "save5"


def test_before_any_run_everybody_gets_none(redis_url):
    assert CouponReader(connect(redis_url)).coupon({}) == "none"


def test_an_unreachable_redis_says_where_it_was_looked_for():
    reader = CouponReader(connect("redis://:secret@127.0.0.1:1/0"))
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1") as failure:
        reader.coupon({})
    assert "secret" not in str(failure.value)


@pytest.fixture(scope="module")
def shop(servers) -> Iterator[Shop]:
    with copy_of(checked_template(servers), servers) as shop:
        shop.daily_run().execute("publish")
        yield shop


@pytest.fixture
def serving(shop) -> "redis.Redis[str]":
    """The shop's Redis, filled again where another test has emptied it."""
    shop.daily_run().execute("publish")
    return connect(shop.redis_url)


def customers(shop: Shop) -> list[dict[str, Any]]:
    """What a shop's own system knows of its customers: everything that winback knows."""
    rows = shop.query(
        "select to_jsonb(scores) || to_jsonb(snapshots) from winback.customer_snapshots snapshots "
        "join winback.customer_scores scores using (customer_id) where snapshot_date = %s",
        shop.as_of,
    )
    return [row for (row,) in rows]


def test_the_reader_gives_what_sql_finds_in_the_q_table(shop, serving):
    """Oracle: pandas on the rows of q_table and the state written into recommendations."""
    reader = CouponReader(serving)
    table = pd.DataFrame(
        shop.query("select state, coupon_id, q_value from winback.q_table where is_supported"),
        columns=["state", "coupon_id", "q_value"],
    )
    values = table.pivot(index="state", columns="coupon_id", values="q_value")
    best = values.idxmax(axis=1).where(values.max(axis=1) > values["none"], "none")
    state_of = dict(shop.query("select customer_id, state from winback.recommendations"))
    rows = customers(shop)
    started = time.perf_counter()
    read = [reader.coupon(row) for row in rows]
    milliseconds = 1000 * (time.perf_counter() - started) / len(rows)
    assert read == [best[state_of[row["customer_id"]]] for row in rows]
    for row in rows:
        assert reader.values(row) == values.loc[state_of[row["customer_id"]]].dropna().to_dict()
    print(f"{milliseconds:.2f} ms per look-up, {len(rows)} customers")


def test_an_unknown_state_gets_none(shop, serving):
    stranger = {**customers(shop)[0], "category": "submarines"}
    assert CouponReader(serving).coupon(stranger) == "none"


def test_the_reader_follows_a_new_version_at_once(shop, serving):
    reader = CouponReader(serving)
    customer = customers(shop)[0]
    assert reader.values(customer)
    space = json.loads(serving.get(meta_key(serving.get(CURRENT))))["state_space"]
    state = StateSpace.from_dict(space).key(customer)
    store = QStore(serving, KEEP_SECONDS)
    for coupon_id in ("save10", "save5"):
        values = [(state, {"none": 0.0, coupon_id: 1.0})]
        store.activate(store.stage(shop.as_of, as_rows(values), {"state_space": space}))
        assert reader.coupon(customer) == coupon_id
