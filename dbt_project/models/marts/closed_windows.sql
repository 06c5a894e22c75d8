{{ config(
    materialized='incremental',
    incremental_strategy='snapshot_dates',
    on_schema_change='append_new_columns',
    post_hook="{{ remember_days(ref('int_source_days')) }}",
    indexes=[{'columns': ['snapshot_date', 'customer_id'], 'unique': true}]
) }}

-- depends_on: {{ ref('int_days_built') }}, {{ ref('int_source_days') }}
select
    snapshots.as_of,
    snapshots.snapshot_date,
    snapshots.customer_id,

    snapshots.frequency,
    snapshots.recency_days,
    snapshots.age_days,
    snapshots.days_since_last_purchase,
    snapshots.purchases_last_30d,
    snapshots.coupons_last_30d,
    snapshots.coupons_received,
    snapshots.avg_order_value,
    snapshots.monetary_value,
    snapshots.remaining_budget_pct,
    snapshots.category,

    snapshots.coupon_id,
    snapshots.propensity,
    snapshots.is_own,
    snapshots.order_placed,
    snapshots.order_profit,
    snapshots.coupon_cost,
    snapshots.reward
from {{ ref('int_snapshot_dates') }} as dates
inner join {{ ref('customer_snapshots') }} as snapshots
    on dates.snapshot_date = snapshots.snapshot_date
where
    dates.is_on_grid
    and dates.is_closed
    {% if is_incremental() %}and dates.needs_build{% endif %}
