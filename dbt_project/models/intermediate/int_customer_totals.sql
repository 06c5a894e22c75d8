{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    pre_hook="{{ set_totals_aside(ref('int_source_days')) }}",
    post_hook=["{{ remember_days(ref('int_source_days')) }}", "analyze {{ this }}"],
    indexes=[{'columns': ['next_event_day']}]
) }}

-- depends_on: {{ ref('int_days_built') }}, {{ ref('int_source_days') }}
{% set changed = none -%}
{% if is_incremental() %}
{%- set changed = days_to_build(this.name, ref('int_source_days')) -%}
{% endif -%}

with days as (

    select
        customer_id,
        event_day,
        cast(purchases > 0 as integer) as purchase_days,
        case when purchases > 0 then event_day end as first_purchase_on,
        -- the latest purchase day and its category, compared as a pair
        case when purchases > 0 then array[event_day - date '1970-01-01', category_id] end
            as last_purchase,
        orders,
        purchases,
        purchase_revenue,
        margin,
        margin as day_margin,
        0 as repeat_margin,
        coupons_offered as coupons_received,
        coupons_redeemed,
        case when coupons_offered > 0 then event_day end as last_coupon_on
    from {{ ref('int_customer_days') }}
    {% if changed is not none %}
    where
        {{ is_from('event_day', changed) }}
        and customer_id in (select totals_before.changed_customer_id from totals_before)
    union all
    -- the totals before the first changed day, as if they were one day
    select
        customer_id,
        event_day,
        purchase_days,
        first_purchase_on,
        case
            when purchase_days > 0 then array[last_purchase_on - date '1970-01-01', category_id]
        end as last_purchase,
        orders,
        purchases,
        purchase_revenue,
        margin,
        0 as day_margin,
        repeat_margin,
        coupons_received,
        coupons_redeemed,
        last_coupon_on
    from totals_before
    where event_day is not null
    {% endif %}

),

totals as (

    select
        customer_id,
        event_day,
        day_margin,
        repeat_margin,
        lead(event_day, 1, cast('infinity' as date)) over so_far as next_event_day,

        sum(purchase_days) over so_far as purchase_days,
        min(first_purchase_on) over so_far as first_purchase_on,
        max(last_purchase) over so_far as last_purchase,

        sum(orders) over so_far as orders,
        sum(purchases) over so_far as purchases,
        sum(purchase_revenue) over so_far as purchase_revenue,
        sum(margin) over so_far as margin,
        sum(coupons_received) over so_far as coupons_received,
        sum(coupons_redeemed) over so_far as coupons_redeemed,
        max(last_coupon_on) over so_far as last_coupon_on
    from days
    window so_far as (partition by customer_id order by event_day)

)

select
    customer_id,
    event_day,
    next_event_day,

    cast(purchase_days as integer) as purchase_days,
    first_purchase_on,
    date '1970-01-01' + last_purchase[1] as last_purchase_on,
    last_purchase[2] as category_id,

    cast(orders as integer) as orders,
    cast(purchases as integer) as purchases,
    purchase_revenue,
    margin,
    sum(
        repeat_margin + case when event_day > first_purchase_on then day_margin else 0 end
    ) over (partition by customer_id order by event_day) as repeat_margin,
    cast(coupons_received as integer) as coupons_received,
    cast(coupons_redeemed as integer) as coupons_redeemed,
    last_coupon_on
from totals
