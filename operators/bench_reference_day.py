"""The reference system's day: its stages on samples of a warehouse, each scaled by its own slope.

It keeps one frame of snapshots in memory and goes over it row by row. It has no SQL: the snapshots
are given to it, and what they cost is not counted.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from winback.models.peers_reference import (
    PLANNING,
    REMEMBERED,
    ROUNDS,
    SEQUENCE,
    STATE,
    TRAFFIC,
    WIDTHS,
)
from winback.operators.bench_measure import Done, Place, exponent
from winback.operators.bench_reference import ReferenceNetwork, best_coupon, reference_learning

TABLE, HASH = "bench_reference", "bench:reference"
SNAPSHOTS = f"""
    create table public.{TABLE} as
    select customer_id, snapshot_date, {", ".join(STATE)}, order_placed,
        coalesce(face_value, 0) as coupon_value,
        order_profit - coalesce(face_value, 0) as reward
    from winback.customer_snapshots as snapshots
    left join raw.coupons as coupons on coupons.coupon_id = snapshots.coupon_id
    where snapshots.order_placed is not null and snapshots.customer_id in (
        select customer_id from winback.customers_known order by customer_id limit %s
    )
"""
PARTS = (4, 2, 1)  # sizes of a stage: its largest by these
PENALTY = 1e-3  # of its BG/NBD fit


@dataclass
class ReferenceDay:
    """The stages' common ground; each stage leaves what the next ones need.

    Attributes:
        url, redis: of the warehouse whose snapshots it is given, and of the Q-table's server.
        snapshots: those with an outcome, a customer's one after the other.
        rows: the same with sequences.
    """

    url: str
    redis: str
    snapshots: Any = None
    rows: Any = None
    summary: Any = None
    fitter: Any = None
    network: Any = None
    faces: Any = None
    table: dict[Any, Any] = field(default_factory=dict)
    decisions: Any = None

    def read(self, customers: int) -> None:
        """Snapshots from the warehouse to a frame."""
        import pandas as pd
        from sqlalchemy import create_engine

        ids = f"(select distinct customer_id from public.{TABLE} order by 1 limit {customers})"
        engine = create_engine(self.url)
        query = f"select * from public.{TABLE} where customer_id in {ids} order by customer_id"
        self.snapshots = pd.read_sql(query, engine).fillna(1.0)
        engine.dispose()
        self.faces = np.sort(self.snapshots["coupon_value"].unique())

    def survival(self, customers: int) -> None:
        """BG/NBD on the days with an order (the article: on all snapshots)."""
        from lifetimes import BetaGeoFitter
        from lifetimes.utils import summary_data_from_transaction_data

        rows = first(self.snapshots, customers)
        bought = rows[rows["order_placed"]]
        columns = ("customer_id", "snapshot_date")
        self.summary = summary_data_from_transaction_data(bought, *columns, freq="D")
        self.fitter = BetaGeoFitter(penalizer_coef=PENALTY)
        self.fitter.fit(self.summary["frequency"], self.summary["recency"], self.summary["T"])

    def sequences(self, customers: int) -> None:
        """Categories of 30 days, drawn by lot for each row."""
        rows = first(self.snapshots, customers)
        categories, draw = rows["category_id"].unique(), np.random.default_rng(0)
        drawn = rows["category_id"].apply(lambda _: draw.choice(categories, SEQUENCE))
        self.rows = rows.assign(seq=drawn)

    def training(self, customers: int) -> None:
        """All epochs over all rows."""
        rows = first(self.rows, customers)[[*STATE, "coupon_value", "seq", "reward"]]
        self.network = ReferenceNetwork(int(self.rows["category_id"].max()) + 1)
        rows = rows.assign(coupon_value=rows["coupon_value"] / max(self.faces.max(), 1.0))
        self.network.train(rows.reset_index(drop=True))

    def learning(self, customers: int) -> None:
        """Q-learning with a roll-out per real step."""
        rows = first(self.rows, customers)
        remembered = rows.sample(min(REMEMBERED, len(rows)), random_state=0)
        memory = [
            (bucket(row), int(np.searchsorted(self.faces, row["coupon_value"])), row["reward"])
            for _, row in remembered.iterrows()
        ]
        self.table = reference_learning(self._traffic(rows), memory, len(self.faces), PLANNING)

    def _traffic(self, rows: Any) -> Iterator[tuple[Any, Callable[[int], Any]]]:
        for number in range(ROUNDS):
            today = rows.sample(min(TRAFFIC, len(rows)), random_state=1 + number)
            for _, row in today.iterrows():
                yield bucket(row), partial(self._roll_out, row.to_dict())

    def _roll_out(self, row: dict[str, Any], coupon: int) -> Any:
        """P(alive) × forecast: an array of one, as lifetimes gives it."""
        customer, known = row["customer_id"], self.summary
        is_known = customer in known.index
        history = [
            known.loc[customer, name] if is_known else otherwise
            for name, otherwise in (("frequency", 0), ("recency", 0), ("T", 1))
        ]
        face = self.faces[coupon] / max(self.faces.max(), 1.0)
        features = [*(float(row[name]) for name in STATE), face]
        alive = self.fitter.conditional_probability_alive(*history)
        return alive * self.network.roll_out(row["seq"], features)

    def recommendations(self, customers: int) -> None:
        """The best coupon of each customer's latest row."""
        import pandas as pd

        latest = first(self.rows, customers).groupby("customer_id").tail(1)
        records = []
        for _, row in latest.iterrows():
            state = bucket(row)
            coupon = best_coupon(self.table, state, len(self.faces))
            value = round(float(np.squeeze(self.table[(state, coupon)])), 2)
            records.append((row["customer_id"], float(self.faces[coupon]), value))
        self.decisions = pd.DataFrame(records, columns=["customer_id", "coupon", "exp_profit"])

    def publication(self, customers: int) -> None:
        """Recommendations to the warehouse, the Q-table to Redis, an entry at a time."""
        import redis
        from sqlalchemy import create_engine

        engine = create_engine(self.url)
        rows = self.decisions.iloc[:customers]
        rows.to_sql(f"{TABLE}_out", engine, schema="public", if_exists="replace", index=False)
        engine.dispose()
        client = redis.Redis.from_url(self.redis)
        for (state, coupon), value in self.table.items():
            client.hset(HASH, f"{state}:{coupon}", float(np.squeeze(value)))


def first(rows: Any, customers: int) -> Any:
    """The rows of the first customers, one customer after the other."""
    known = rows["customer_id"].unique()[:customers]
    return rows[rows["customer_id"] <= known[-1]]


def bucket(row: Any) -> tuple[int, ...]:
    """The article's state."""
    return tuple(int(row[name] // width) for name, width in zip(STATE, WIDTHS, strict=True))


# How many customers each stage is measured on at most: seconds, where a row takes a millisecond.
STAGES: tuple[tuple[Callable[[ReferenceDay, int], None], int], ...] = (
    (ReferenceDay.read, 20_000),
    (ReferenceDay.survival, 20_000),
    (ReferenceDay.sequences, 20_000),
    (ReferenceDay.training, 1_000),
    (ReferenceDay.learning, 20_000),
    (ReferenceDay.recommendations, 20_000),
    (ReferenceDay.publication, 20_000),
)


def reference_day(size: int, place: Place) -> Callable[[], Done]:
    """The stages on samples of the snapshots that winback has made; their sum at ``size``."""
    import psycopg
    import redis

    url, address = str(place["postgres"]), str(place["redis"])

    def run() -> Done:
        tables = f"drop table if exists public.{TABLE}, public.{TABLE}_out".encode()
        with psycopg.connect(url) as connection:
            connection.execute(tables)
            connection.execute(SNAPSHOTS.encode(), [max(largest for _, largest in STAGES)])
            connection.execute(f"analyze public.{TABLE}".encode())
        try:
            return _scaled(measure_stages(ReferenceDay(url, address), size), size)
        finally:
            redis.Redis.from_url(address).delete(HASH)
            with psycopg.connect(url) as connection:
                connection.execute(tables)

    return run


def measure_stages(day: ReferenceDay, size: int) -> dict[str, dict[int, float]]:
    """By stage: seconds for so many customers, ``size`` at most."""
    measured: dict[str, dict[int, float]] = {}
    for stage, largest in STAGES:
        seconds = measured.setdefault(stage.__name__, {})
        for customers in sorted({max(1, min(largest, size) // part) for part in PARTS}):
            started = time.perf_counter()
            stage(day, customers)
            seconds[customers] = time.perf_counter() - started
    return measured


def scale(seconds: dict[int, float], size: int) -> tuple[float, float]:
    """Seconds at a size, from those at smaller ones, and their slope: no less than 0."""
    sizes = sorted(seconds)
    slope = max(0.0, exponent(sizes, [seconds[at] for at in sizes])) if len(sizes) > 1 else 1.0
    return float(seconds[sizes[-1]] * (size / sizes[-1]) ** slope), slope


def _scaled(measured: dict[str, dict[int, float]], size: int) -> Done:
    total, notes = 0.0, {}
    for stage, seconds in measured.items():
        scaled, slope = scale(seconds, size)
        total += scaled
        notes[stage] = f"{scaled:,.3g} s (size^{slope:.2f}, from {max(seconds):,} customers)"
    largest = max(max(seconds) for seconds in measured.values())
    return Done({"said": f"measured on {largest:,} customers"}, seconds=total, notes=notes)
