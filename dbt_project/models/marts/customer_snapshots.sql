{{ config(
    materialized='incremental',
    incremental_strategy='snapshot_dates',
    on_schema_change='append_new_columns',
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

        ),

        computed as (

            select
                so_far.customer_id,
                so_far.purchase_days - 1 as frequency,
                so_far.last_purchase_on - so_far.first_purchase_on as recency_days,
                dates.snapshot_date - so_far.first_purchase_on as age_days,
                dates.snapshot_date - so_far.last_purchase_on as days_since_last_purchase,
                cast(coalesce(recent_month.purchases, 0) as integer) as purchases_last_30d,
                cast(so_far.purchase_revenue / so_far.purchases as double precision)
                    as avg_order_value,
                categories.category,
                so_far.category_id,
                cast(coalesce(recent_month.coupons, 0) as integer) as coupons_last_30d,
                cast(coalesce(recent_quarter.revenue, 0) as double precision) as revenue_last_90d,
                cast(so_far.margin / so_far.purchase_days as double precision) as monetary_value,
                so_far.coupons_received,
                so_far.coupons_redeemed,
                coalesce(recent_month.category_sequence, array_fill(0, array[30]))
                    as category_sequence
            -- the totals that hold at the date: those after the last event before it
            from {{ ref('int_customer_totals') }} as so_far
            inner join {{ ref('categories') }} as categories
                on so_far.category_id = categories.category_id
            left join recent_quarter on so_far.customer_id = recent_quarter.customer_id
            left join recent_month on so_far.customer_id = recent_month.customer_id
            where
                so_far.event_day < dates.snapshot_date
                and so_far.next_event_day >= dates.snapshot_date
                and so_far.purchase_days > 0
                {% if is_incremental() %}and not dates.has_features{% endif %}

        ),

        {% if is_incremental() -%}
        -- of windows that close, where only what came of them is new
        kept as (

            select
                built.customer_id,
                built.frequency,
                built.recency_days,
                built.age_days,
                built.days_since_last_purchase,
                built.purchases_last_30d,
                built.avg_order_value,
                built.category,
                built.category_id,
                built.coupons_last_30d,
                built.revenue_last_90d,
                built.monetary_value,
                built.coupons_received,
                built.coupons_redeemed,
                built.category_sequence
            from {{ this }} as built
            where built.snapshot_date = dates.snapshot_date and dates.has_features

        ),
        {%- endif %}

        features as (

            select * from computed
            {% if is_incremental() %}
            union all
            select * from kept
            {% endif %}

        )

        select
            features.*,
            -- outcomes are known once the window is over
            case when dates.is_closed then coalesce(first_offers.coupon_id, 'none') end
                as coupon_id,
            first_offers.propensity,
            case when dates.is_closed then coalesce(first_offers.is_own, false) end as is_own,
            case when dates.is_closed then coalesce(outcomes.purchases, 0) > 0 end as order_placed,
            case when dates.is_closed then coalesce(outcomes.margin, 0) end as order_profit,
            case when dates.is_closed then coalesce(outcomes.coupon_cost, 0) end as coupon_cost,
            case when dates.is_closed then coalesce(outcomes.contact_cost, 0) end as contact_cost
        from features
        left join outcomes on features.customer_id = outcomes.customer_id
        left join first_offers on features.customer_id = first_offers.customer_id

    ) as customers

)

select
    as_of,
    cast('{{ var("run_id") }}' as text) as run_id,
    snapshot_date,
    customer_id,
    is_on_grid,

    frequency,
    recency_days,
    age_days,
    days_since_last_purchase,
    purchases_last_30d,
    avg_order_value,
    remaining_budget_pct,
    category,
    category_id,
    coupons_last_30d,
    revenue_last_90d,
    monetary_value,
    coupons_received,
    coupons_redeemed,
    category_sequence,

    coupon_id,
    cast(propensity as double precision) as propensity,
    is_own,
    order_placed,
    cast(order_profit as double precision) as order_profit,
    cast(coupon_cost as double precision) as coupon_cost,
    cast(contact_cost as double precision) as contact_cost,
    cast(order_profit - coupon_cost - contact_cost as double precision) as reward
from snapshots
