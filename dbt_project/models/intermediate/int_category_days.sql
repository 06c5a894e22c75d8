{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ delete_days_to_build(ref('int_event_days')) }}",
    post_hook="{{ remember_days(ref('int_event_days')) }}",
    indexes=[{'columns': ['event_day']}]
) }}

-- depends_on: {{ ref('stg_winback__coupon_offers') }}
-- (a day remembered here has passed the tests of its orders and its offers: see changed_days.sql)
with purchases as (

    select * from {{ ref('stg_winback__orders') }}
    where is_purchase and {{ is_to_build('ordered_on', ref('int_event_days')) }}

),

lines as (

    select
        purchases.customer_id,
        purchases.ordered_on as event_day,
        purchases.ordered_at,
        coalesce(items.category, 'unknown') as category,
        case when items.order_id is null then purchases.revenue else items.revenue end as revenue
    from purchases
    left join {{ ref('stg_winback__order_items') }} as items on purchases.order_id = items.order_id

)

select
    customer_id,
    event_day,
    category,
    sum(revenue) as revenue,
    min(ordered_at) as first_ordered_at
from lines
group by customer_id, event_day, category
