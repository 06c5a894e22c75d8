{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    pre_hook='{{ delete_snapshots_to_build() }}',
    post_hook="{{ remember_days(ref('int_source_days')) }}",
    indexes=[
        {'columns': ['snapshot_date', 'customer_id'], 'unique': true},
        {'columns': ['as_of']}
    ]
) }}

-- depends_on: {{ ref('int_days_built') }}, {{ ref('int_source_days') }}
with dates as (

    select * from {{ ref('int_snapshot_dates') }}
    {% if is_incremental() %}
    where needs_build
    {% endif %}

),

-- one date at a time: every date sees each customer once, so no step sorts the whole history
snapshots as (

    select
        dates.snapshot_date,
        dates.as_of,
        dates.is_on_grid,
        dates.remaining_budget_pct,
        customers.*
    from dates
    cross join lateral (

        with recent_quarter as (

            select
                events.customer_id,
                sum(events.revenue) as revenue
            from {{ ref('int_customer_days') }} as events
            where
                events.event_day < dates.snapshot_date
                and events.event_day >= dates.snapshot_date - 90
            group by events.customer_id

        ),

        -- apart from the quarter: thirty conditions are dear, and three times fewer rows need them
        recent_month as (

            select
                events.customer_id,
                sum(events.purchases) as purchases,
                sum(events.coupons_offered) as coupons,
                array[
                    {%- for age in range(30, 0, -1) %}
                    coalesce(
                        max(events.category_id)
                        filter (where dates.snapshot_date - events.event_day = {{ age }}),
                        0
                    ){{ "," if not loop.last }}
                    {%- endfor %}
                ] as category_sequence
            from {{ ref('int_customer_days') }} as events
            where
                events.event_day < dates.snapshot_date
                and events.event_day >= dates.snapshot_date - 30
            group by events.customer_id

        ),

        window_days as (

            select events.*
            from {{ ref('int_customer_days') }} as events
            where
                dates.is_closed
                and events.event_day >= dates.snapshot_date
                and events.event_day < dates.snapshot_date + {{ var('decision_days') }}

        ),

        outcomes as (

            select
                customer_id,
                sum(purchases) as purchases,
                sum(margin) as margin,
                sum(coupon_cost) as coupon_cost,
                sum(contact_cost) as contact_cost
            from window_days
            group by customer_id

        ),

        first_offers as (

            select distinct on (customer_id)
                customer_id,
                coupon_id,
                propensity,
                is_own
            from window_days
            where coupon_id is not null
            order by customer_id, event_day

        )

        select
            so_far.customer_id,
            so_far.purchase_days,
            so_far.first_purchase_on,
            so_far.last_purchase_on,
            so_far.purchases,
            so_far.purchase_revenue,
            so_far.margin,
            so_far.category_id,
            so_far.coupons_received,
            so_far.coupons_redeemed,

            coalesce(recent_month.purchases, 0) as purchases_last_30d,
            coalesce(recent_month.coupons, 0) as coupons_last_30d,
            coalesce(recent_quarter.revenue, 0) as revenue_last_90d,
            coalesce(recent_month.category_sequence, array_fill(0, array[30]))
                as category_sequence,

            -- outcomes are known once the window is over
            case when dates.is_closed then coalesce(first_offers.coupon_id, 'none') end
                as coupon_id,
            first_offers.propensity,
            case when dates.is_closed then coalesce(first_offers.is_own, false) end as is_own,
            case when dates.is_closed then coalesce(outcomes.purchases, 0) > 0 end as order_placed,
            case when dates.is_closed then coalesce(outcomes.margin, 0) end as order_profit,
            case when dates.is_closed then coalesce(outcomes.coupon_cost, 0) end as coupon_cost,
            case when dates.is_closed then coalesce(outcomes.contact_cost, 0) end as contact_cost
        -- the totals that hold at the date: those after the last event before it
        from {{ ref('int_customer_totals') }} as so_far
        left join recent_quarter on so_far.customer_id = recent_quarter.customer_id
        left join recent_month on so_far.customer_id = recent_month.customer_id
        left join outcomes on so_far.customer_id = outcomes.customer_id
        left join first_offers on so_far.customer_id = first_offers.customer_id
        where
            so_far.event_day < dates.snapshot_date
            and so_far.next_event_day >= dates.snapshot_date
            and so_far.purchase_days > 0

    ) as customers

)

select
    snapshots.as_of,
    cast('{{ var("run_id") }}' as text) as run_id,
    snapshots.snapshot_date,
    snapshots.customer_id,
    snapshots.is_on_grid,

    cast(snapshots.purchase_days - 1 as integer) as frequency,
    snapshots.last_purchase_on - snapshots.first_purchase_on as recency_days,
    snapshots.snapshot_date - snapshots.first_purchase_on as age_days,
    snapshots.snapshot_date - snapshots.last_purchase_on as days_since_last_purchase,
    cast(snapshots.purchases_last_30d as integer) as purchases_last_30d,
    cast(snapshots.purchase_revenue / snapshots.purchases as double precision) as avg_order_value,
    snapshots.remaining_budget_pct,
    categories.category,
    snapshots.category_id,
    cast(snapshots.coupons_last_30d as integer) as coupons_last_30d,
    cast(snapshots.revenue_last_90d as double precision) as revenue_last_90d,
    cast(snapshots.margin / snapshots.purchase_days as double precision) as monetary_value,
    cast(snapshots.coupons_received as integer) as coupons_received,
    cast(snapshots.coupons_redeemed as integer) as coupons_redeemed,
    snapshots.category_sequence,

    snapshots.coupon_id,
    cast(snapshots.propensity as double precision) as propensity,
    snapshots.is_own,
    snapshots.order_placed,
    cast(snapshots.order_profit as double precision) as order_profit,
    cast(snapshots.coupon_cost as double precision) as coupon_cost,
    cast(snapshots.contact_cost as double precision) as contact_cost,
    cast(
        snapshots.order_profit - snapshots.coupon_cost - snapshots.contact_cost as double precision
    ) as reward
from snapshots
inner join {{ ref('categories') }} as categories on snapshots.category_id = categories.category_id
