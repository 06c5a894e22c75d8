-- Arithmetic that holds in every snapshot, checked on the rows of this build.
select
    snapshot_date,
    customer_id
from {{ ref('customer_snapshots') }}
where
    as_of = {{ as_of_date() }}
    and (
        frequency < 0
        or recency_days > age_days
        or (frequency = 0 and recency_days <> 0)
        or days_since_last_purchase <> age_days - recency_days
        or days_since_last_purchase < 1
        or remaining_budget_pct not between 0 and 1
        or coupons_last_30d > coupons_received
        -- the sequence ends yesterday and holds the last purchase in its place
        or cardinality(category_sequence) <> 30
        or (purchases_last_30d > 0) <> (days_since_last_purchase <= 30)
        or (
            days_since_last_purchase <= 30
            and category_sequence[31 - days_since_last_purchase] <> category_id
        )
        -- cents are exact in the sums; the three differ by rounding to doubles only
        or abs(reward - (order_profit - coupon_cost - contact_cost)) > 1e-6
        or propensity not between 0 and 1
    )
