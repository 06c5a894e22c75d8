"""What a day more adds to ``customer_snapshots``, in plain SQL: the peer of the dbt models.

Straight from the sources, without anything kept from the day before: each customer and date is
joined with its orders or offers once per window: all before, 90 days, 30 days, and the decision's.
"""

from datetime import date

from winback.models.settings import Settings

# Intermediate tables, analysed: as one statement its plan is a loop over all pairs.
NAIVE = """
create temporary table dates as (
    select * from (values (date '{as_of}', false), (date '{as_of}' - {days}, true))
        as dates (snapshot_date, is_closed)
);
create temporary table orders as (
    select distinct
        order_id, customer_id, ordered_at, ordered_at::date as day, revenue,
        revenue >= 0 as is_purchase,
        coalesce(margin, revenue * {margin_rate}) as margin, coalesce(coupon_cost, 0) as coupon_cost
    from raw.orders where ordered_at < timestamptz '{as_of} 00:00+00'
);
create temporary table offers as (
    select distinct
        offer_id, customer_id, coupon_id, offered_at, offered_at::date as day, propensity
    from raw.coupon_offers where offered_at < timestamptz '{as_of} 00:00+00'
);
create temporary table sold as (
    select o.customer_id, o.day, coalesce(i.category, 'unknown') as category,
        sum(case when i.order_id is null then o.revenue else i.revenue end) as revenue,
        min(o.ordered_at) as first_at
    from orders o left join raw.order_items i on i.order_id = o.order_id
    where o.is_purchase group by 1, 2, 3
);
create temporary table categories as (
    select category, row_number() over (order by min(first_at), category) as category_id
    from sold group by category
);
create temporary table top as (
    select distinct on (customer_id, day) customer_id, day, category, category_id
    from sold join categories using (category)
    order by customer_id, day, revenue desc, category
);
create temporary table customers as (
    select d.snapshot_date, d.is_closed, o.customer_id
    from dates d join orders o on o.is_purchase and o.day < d.snapshot_date
    group by 1, 2, 3
);
analyze dates;
analyze orders;
analyze offers;
analyze top;
analyze customers;
create table {table} as
with ever as (
    select c.snapshot_date, c.customer_id, count(distinct o.day) filter (where is_purchase) as days,
        min(o.day) filter (where is_purchase) as first_on,
        max(o.day) filter (where is_purchase) as last_on,
        count(*) filter (where is_purchase) as purchases,
        sum(o.revenue) filter (where is_purchase) as revenue,
        sum(o.margin) as margin, count(*) filter (where o.coupon_cost > 0) as redeemed
    from customers c join orders o on o.customer_id = c.customer_id and o.day < c.snapshot_date
    group by 1, 2
),
quarter as (
    select c.snapshot_date, c.customer_id, sum(o.revenue) as revenue
    from customers c join orders o on o.customer_id = c.customer_id
        and o.day >= c.snapshot_date - 90 and o.day < c.snapshot_date
    group by 1, 2
),
month as (
    select c.snapshot_date, c.customer_id, count(*) as purchases
    from customers c join orders o on o.customer_id = c.customer_id and o.is_purchase
        and o.day >= c.snapshot_date - 30 and o.day < c.snapshot_date
    group by 1, 2
),
sequence as (
    select c.snapshot_date, c.customer_id, array[{places}] as category_sequence
    from customers c join top t on t.customer_id = c.customer_id
        and t.day >= c.snapshot_date - 30 and t.day < c.snapshot_date
    group by 1, 2
),
coupons as (
    select c.snapshot_date, c.customer_id, count(*) as received
    from customers c join offers f on f.customer_id = c.customer_id and f.coupon_id <> 'none'
        and f.day < c.snapshot_date
    group by 1, 2
),
month_coupons as (
    select c.snapshot_date, c.customer_id, count(*) as received
    from customers c join offers f on f.customer_id = c.customer_id and f.coupon_id <> 'none'
        and f.day >= c.snapshot_date - 30 and f.day < c.snapshot_date
    group by 1, 2
),
outcomes as (
    select c.snapshot_date, c.customer_id, count(*) filter (where o.is_purchase) as purchases,
        sum(o.margin) as margin, sum(o.coupon_cost) as coupon_cost
    from customers c join orders o on o.customer_id = c.customer_id and c.is_closed
        and o.day >= c.snapshot_date and o.day < c.snapshot_date + {days}
    group by 1, 2
),
offered as (
    select c.snapshot_date, c.customer_id,
        (array_agg(f.coupon_id order by f.offered_at, f.offer_id))[1] as coupon_id,
        (array_agg(f.propensity order by f.offered_at, f.offer_id))[1] as propensity,
        coalesce(sum(k.contact_cost) filter (where f.coupon_id <> 'none'), 0) as contact_cost
    from customers c join offers f on f.customer_id = c.customer_id and c.is_closed
        and f.day >= c.snapshot_date and f.day < c.snapshot_date + {days}
    left join raw.coupons k on k.coupon_id = f.coupon_id
    group by 1, 2
),
budgets as (
    select d.snapshot_date,
        greatest(least((b.amount - coalesce(sum(o.coupon_cost), 0)) / b.amount, 1), 0) as remaining
    from dates d join raw.budgets b
        on d.snapshot_date >= b.period_start and d.snapshot_date < b.period_end
    left join orders o on o.day >= b.period_start and o.day < d.snapshot_date
    group by d.snapshot_date, b.amount
)
select
    snapshot_date, customer_id, ever.days - 1 as frequency,
    last_on - ever.first_on as recency_days, snapshot_date - ever.first_on as age_days,
    snapshot_date - last_on as days_since_last_purchase,
    coalesce(month.purchases, 0) as purchases_last_30d,
    (ever.revenue / ever.purchases)::float8 as avg_order_value,
    budgets.remaining::float8 as remaining_budget_pct, latest.category, latest.category_id,
    coalesce(month_coupons.received, 0) as coupons_last_30d,
    coalesce(quarter.revenue, 0)::float8 as revenue_last_90d,
    (ever.margin / ever.days)::float8 as monetary_value,
    coalesce(coupons.received, 0) as coupons_received, ever.redeemed as coupons_redeemed,
    coalesce(sequence.category_sequence, array_fill(0::bigint, array[30]))
        as category_sequence,
    case when c.is_closed then coalesce(offered.coupon_id, 'none') end as coupon_id,
    offered.propensity::float8 as propensity,
    case when c.is_closed then coalesce(outcomes.purchases, 0) > 0 end as order_placed,
    case when c.is_closed then coalesce(outcomes.margin, 0)::float8 end as order_profit,
    case when c.is_closed then coalesce(outcomes.coupon_cost, 0)::float8 end as coupon_cost,
    case when c.is_closed then coalesce(offered.contact_cost, 0)::float8 end as contact_cost,
    case when c.is_closed then (coalesce(outcomes.margin, 0) - coalesce(outcomes.coupon_cost, 0)
        - coalesce(offered.contact_cost, 0))::float8 end as reward
from customers c
join ever using (snapshot_date, customer_id)
join (select customer_id, day as last_on, category, category_id from top) latest
    using (customer_id, last_on)
left join quarter using (snapshot_date, customer_id)
left join month using (snapshot_date, customer_id)
left join sequence using (snapshot_date, customer_id)
left join coupons using (snapshot_date, customer_id)
left join month_coupons using (snapshot_date, customer_id)
left join outcomes using (snapshot_date, customer_id)
left join offered using (snapshot_date, customer_id)
left join budgets using (snapshot_date);
drop table dates, orders, offers, sold, categories, top, customers
"""


def naive_features(table: str, as_of: date) -> str:
    """SQL that fills ``table`` with the rows that a Monday adds to ``customer_snapshots``.

    They are the decision date's, and those of the window that closes at it with what came of it.
    """
    settings = Settings()
    places = ", ".join(
        f"coalesce(max(t.category_id) filter (where c.snapshot_date - t.day = {age}), 0)"
        for age in range(30, 0, -1)
    )
    return NAIVE.format(
        table=table,
        as_of=as_of,
        days=settings.decision_days,
        margin_rate=settings.default_margin_rate,
        places=places,
    )
