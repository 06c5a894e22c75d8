"""The benchmarks at tiny sizes: every side runs, and agrees with its peers.

Oracles: the peers themselves (lifetimes, HiGHS, PDLP, pandas, one HSET per state, plain SQL over
the sources), power laws made by hand, a closed form of Q-learning, the same seed again.
"""

import json
from dataclasses import replace
from datetime import date, datetime, timezone

import numpy as np
import psycopg
import pytest
import redis
from lifetimes import BetaGeoFitter
from rich.console import Console

from winback.models.errors import SettingsError
from winback.models.peers_reference import ALPHA, GAMMA
from winback.operators import bench
from winback.operators.bench import BenchOptions, choose_steps, run_bench, versions
from winback.operators.bench_allocation import category_limits, problem
from winback.operators.bench_features import forget_results
from winback.operators.bench_limits import matmul_rate, triad_rate
from winback.operators.bench_measure import (
    BenchError,
    Done,
    Measurement,
    close,
    exponent,
    measure,
)
from winback.operators.bench_planner import bytes_per_sweep, planning_problem
from winback.operators.bench_profit import training_rows
from winback.operators.bench_reference import reference_learning
from winback.operators.bench_reference_day import STAGES, reference_day, scale
from winback.operators.bench_report import BenchReport, compare, markdown, write_bench
from winback.operators.bench_steps import STEPS
from winback.operators.bench_survival import customers, grouped
from winback.operators.big_warehouse import fill_warehouse, last_day
from winback.operators.processes import peak_memory_mb
from winback.operators.sample import SOURCE_TABLES

SNAPSHOTS_BY_HAND = """
    create schema winback;
    create table winback.customers_known as select distinct customer_id from raw.orders;
    create table winback.customer_snapshots as
    select
        customer_id, day::date as snapshot_date, extract(day from day) as days_since_last_purchase,
        1 as purchases_last_30d, 20.0 as avg_order_value, null::float as remaining_budget_pct,
        extract(dow from day)::int as category_id, 'none' as coupon_id,
        extract(day from day) > 9 as order_placed, extract(day from day) as order_profit
    from winback.customers_known
    cross join generate_series('2024-01-02', '2024-02-01', '5 days'::interval) as day
"""
TINY = {"survival-fit": 800, "training": 1_200, "features": 60, "daily": 400}
SLOW = ("daily",)  # two whole runs
WEEKS = 8


@pytest.fixture
def place(warehouse_url, redis_url, tmp_path):
    return {
        "postgres": warehouse_url,
        "redis": redis_url,
        "data_dir": str(tmp_path),
        "weeks": WEEKS,
    }


@pytest.mark.parametrize("name", [name for name in STEPS if name not in SLOW])
def test_every_side_runs_and_agrees_with_its_peers(name, place):
    run_all_sides(STEPS[name], place)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_daily_run_is_measured_by_task(name, place):
    ours = run_all_sides(STEPS[name], place)
    assert {"train_profit", "publish"} <= ours.notes["seconds"].keys() & ours.notes[
        "peak MB"
    ].keys()


def run_all_sides(step, place):
    """Every side in this process, as the benchmark runs them in processes of their own."""
    size = TINY.get(step.name, step.quick[0])
    names = list(step.sides)
    runs = {name: step.sides[name](size, place) for name in names}
    done = {name: runs[name]() for name in reversed(names)}  # peers first
    answers = {name: json.loads(json.dumps(one.answer)) for name, one in done.items()}
    for peer in names[1:]:
        step.agree(answers[names[0]], answers[peer])
    assert all(one.seconds is None or one.seconds > 0 for one in done.values())
    return done[names[0]]


def test_sides_run_in_processes_of_their_own_in_turns():
    ours, *peers = measure(replace(STEPS["survival-fit"]), 500, {}, repeats=2)
    for one in (ours, *peers):
        assert len(one.seconds) == 2
        assert 20 < one.peak_mb < 1_000
    assert [one.side for one in peers] == ["lifetimes, unique triples", "lifetimes, all rows"]


def test_a_side_that_fails_says_why():
    broken = replace(STEPS["read-rows"], sides={"winback": STEPS["read-rows"].sides["winback"]})
    with pytest.raises(BenchError, match="KeyError"):
        measure(broken, 10, {}, repeats=1)  # no server in the place


def test_answers_that_differ_are_refused():
    with pytest.raises(BenchError, match="agree to 1e-08"):
        close("log-likelihood", -1.0, -1.0001, 1e-8)
    with pytest.raises(BenchError):
        close("log-likelihood", float("nan"), -1.0, 1e-8)
    fit = STEPS["survival-fit"]
    with pytest.raises(BenchError):
        compare(fit, [measured("winback", ll=-5.0), measured("lifetimes", ll=-6.0)], {})


def test_exponent_of_a_power_law():
    sizes = [10, 100, 1_000]
    assert exponent(sizes, [3.0 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [0.2, 0.2, 0.2]) == pytest.approx(0.0)


def measured(side, size=100, seconds=1.0, ll=-5.0, moved=0.0):
    answer = {"log_likelihood": ll}
    return Measurement("survival-fit", side, size, (seconds,), size, moved, 50.0, answer, {})


def test_the_page_shows_ratio_and_share_and_the_json_every_run(tmp_path):
    step, limits = replace(STEPS["survival-fit"], limit="triad"), {"triad": 8e9}
    sides = [
        [measured("winback", n, 0.1 * n, moved=4e8 * n), measured("lifetimes", n, 0.5 * n)]
        for n in (10, 100)
    ]
    report = BenchReport(
        date=datetime(2024, 1, 1, tzinfo=timezone.utc),
        command="winback bench",
        machine={"cores": 2, "memory_gb": 8, "system": "Linux", "python": "3.11"},
        versions=versions(),
        limits=limits,
        measured=[one for pair in sides for one in pair],
        compared=[line for pair in sides for line in compare(step, pair, limits)],
        failures={"daily": "no disk"},
    )
    page = markdown(report, "b.svg", "b.json")
    assert "| survival-fit | 10 customers | 1 s | 5 s | lifetimes | 5× | 50% | 50 / 50 |" in page
    assert "winback 1.00, lifetimes 1.00" in page
    assert "no disk" in page
    paths = write_bench(report, tmp_path / "docs" / "b.md")
    kept = json.loads(paths[1].read_text())
    assert [run["seconds"] for run in kept["runs"]] == [[1.0], [5.0], [10.0], [50.0]]
    assert paths[2].read_text().count("<svg") == 1


def test_the_command_measures_writes_and_counts_failures(tmp_path):
    output = tmp_path / "bench.md"
    options = BenchOptions(["help"], quick=True, repeats=1, output=output)
    assert run_bench(options, tmp_path, Console(quiet=True)) == 0
    assert "winback bench help --quick" in output.read_text()


def test_a_failure_keeps_what_was_measured_before_it(tmp_path, monkeypatch):
    def second_differs(step, sides, limits):
        if sides[0].size == 200:
            raise BenchError("they differ")
        return compare(step, sides, limits)

    monkeypatch.setattr(bench, "compare", second_differs)
    output = tmp_path / "bench.md"
    options = BenchOptions(["survival-fit"], sizes=[100, 200], repeats=1, output=output)
    assert run_bench(options, tmp_path, Console(quiet=True)) == 1
    page = output.read_text()
    assert "| 100 customers |" in page
    assert "| 200 customers |" not in page
    assert "- **survival-fit**: they differ" in page


@pytest.mark.parametrize("options", [{"steps": ["nothing"]}, {"sizes": [0]}, {"repeats": 0}])
def test_a_wrong_call_is_refused(options, tmp_path):
    with pytest.raises(SettingsError, match=r"bench: (no such step|expected)"):
        run_bench(BenchOptions(**options), tmp_path, Console(quiet=True))


def test_steps_keep_their_order():
    assert [step.name for step in choose_steps(["limits", "planner"])] == ["planner", "limits"]
    assert choose_steps([]) == list(STEPS.values())


def test_limits_of_the_machine_are_plausible():
    assert 1e8 < triad_rate(1 << 20) < 1e13
    assert 1e8 < matmul_rate(threads=1, size=256) < 1e14


def test_grouped_histories_are_the_rows_again():
    histories = customers(500)
    triples, count, number = grouped(histories)
    assert count.sum() == 500
    for column, distinct in zip(histories, triples, strict=True):
        np.testing.assert_array_equal(distinct[number], column)
    frequency, recency, age = histories
    assert (recency <= age).all()
    assert ((frequency == 0) == (recency == 0)).all()
    assert (frequency <= recency).all()


def test_inputs_are_the_same_on_every_side():
    for make in (lambda: problem(50)[:2], lambda: (training_rows(50).features,)):
        for a, b in zip(make(), make(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_limits_of_the_allocation_bind():
    given = problem(2_000)
    limits = category_limits(2_000, given)
    assert len(limits) == 10
    assert all(limit.floor > 0 or limit.ceiling < given[2] for limit in limits)


def test_the_references_learning_approaches_its_closed_form():
    """One state and coupon, reward 2: Q = 2 / (1 - γ) · (1 - (1 - α (1 - γ))ⁿ) after n steps."""
    today = [("state", lambda coupon: np.array([2.0]))] * 500
    table = reference_learning(today, [], coupons=1, planned=0)
    steps = 1 - ALPHA * (1 - GAMMA)
    assert table["state", 0] == pytest.approx(2.0 / (1 - GAMMA) * (1 - steps**500))


def test_the_references_chance_to_be_alive_is_an_array_of_one():
    """So its values are arrays, which is what its updates cost."""
    fitter = BetaGeoFitter()
    fitter.params_ = {"r": 0.2, "alpha": 4.0, "a": 0.8, "b": 2.4}
    assert fitter.conditional_probability_alive(2, 10.0, 20.0).shape == (1,)


def test_the_references_day_goes_through_its_stages_and_leaves_nothing(place):
    fill_warehouse(place["postgres"], 60, WEEKS)
    forget_results(place["postgres"])  # of other tests of this file
    with psycopg.connect(place["postgres"]) as connection:
        connection.execute(SNAPSHOTS_BY_HAND)
    done = reference_day(60, place)()
    forget_results(place["postgres"])
    assert list(done.notes) == [stage.__name__ for stage, _ in STAGES]
    assert done.seconds > 0
    with psycopg.connect(place["postgres"]) as connection:
        left = connection.execute(
            "select count(*) from pg_tables where tablename ~ 'bench_reference'"
        )
        assert left.fetchone() == (0,)
    assert redis.Redis.from_url(place["redis"]).keys("bench:reference*") == []


def test_a_stage_is_scaled_by_its_own_slope():
    assert scale({100: 1.0, 200: 2.0, 400: 4.0}, 800) == pytest.approx((8.0, 1.0))
    assert scale({100: 1.0, 200: 4.0}, 400) == pytest.approx((16.0, 2.0))
    assert scale({100: 1.0, 200: 0.9}, 400) == pytest.approx((0.9, 0.0)), "work never shrinks"


def test_bytes_of_a_sweep_count_every_array_once():
    model, log = planning_problem(500)
    assert len(log) == 500
    least = 12 * model.kernel.nnz + 24 * model.reward.size
    assert least < bytes_per_sweep(model) < 1.5 * least


def test_a_side_knows_its_peak_memory():
    before = peak_memory_mb()
    held = np.ones(30_000_000 // 8 * 8)  # 240 MB
    assert peak_memory_mb() - before > 150
    assert held.size
    assert Done({}).peak_mb is None


def test_a_large_warehouse_is_seeded_and_its_blocks_do_not_depend_on_its_size(warehouse_url):
    assert fill_warehouse(warehouse_url, 300, WEEKS, seed=3) == last_day(WEEKS) == date(2024, 2, 26)
    first = orders(warehouse_url)
    fill_warehouse(warehouse_url, 300, WEEKS, seed=3)
    assert orders(warehouse_url) == first
    fill_warehouse(warehouse_url, 300, WEEKS, seed=4)
    assert orders(warehouse_url) != first


def test_a_large_warehouse_fills_the_contracts_tables(warehouse_url):
    fill_warehouse(warehouse_url, 400, WEEKS, orders_per_customer=5)
    with psycopg.connect(warehouse_url) as connection:

        def ask(query):
            return connection.execute(query).fetchone()[0]

        for table in SOURCE_TABLES:
            assert ask(f"select count(*) from raw.{table}") > 0, table
        assert ask("select count(*) = count(distinct order_id) from raw.orders")
        assert ask("select count(*) = count(distinct offer_id) from raw.coupon_offers")
        assert ask("select count(*) = 0 from raw.orders where ordered_at >= '2024-02-26'")
        assert ask("select count(*) = 0 from raw.orders where (coupon_cost > 0) = "
                   "(coupon_offer_id is null)")  # fmt: skip
        redeemed_by_others = """
            select count(*) from raw.orders join raw.coupon_offers on offer_id = coupon_offer_id
            where orders.customer_id <> coupon_offers.customer_id or ordered_at < offered_at
        """
        assert ask(redeemed_by_others) == 0
        assert 3 < ask("select count(*) / 400.0 from raw.orders") < 8


def orders(url):
    with psycopg.connect(url) as connection:
        return connection.execute("select * from raw.orders order by order_id").fetchall()
