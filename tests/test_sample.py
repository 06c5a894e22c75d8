"""Source tables and sample data."""

import psycopg

from winback.operators.sample import generate_sample


def test_generated(warehouse_url):
    print(generate_sample(warehouse_url))
    with psycopg.connect(warehouse_url) as c:
        print(c.execute("select count(*), sum(revenue), min(ordered_at), max(ordered_at) from raw.orders").fetchall())
        print(c.execute("select * from raw.customers limit 3").fetchall())
