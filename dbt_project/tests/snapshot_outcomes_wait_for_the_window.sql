-- Outcomes are all there when the window is over, and all null before.
select
    snapshot_date,
    customer_id
from {{ ref('customer_snapshots') }}
where
    as_of = {{ as_of_date() }}
    and num_nonnulls(coupon_id, order_placed, order_profit, coupon_cost, contact_cost, reward)
    <> case when snapshot_date + {{ var('decision_days') }} <= as_of then 6 else 0 end
