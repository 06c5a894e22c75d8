{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ delete_days_to_build(ref('int_source_days')) }}",
    post_hook=["{{ remember_days(ref('int_source_days')) }}", "analyze {{ this }}"],
    indexes=[{'columns': ['event_day', 'customer_id'], 'unique': true}]
) }}

with order_days as (

    select
        customer_id,
        ordered_on as event_day,
        count(*) as orders,
        count(*) filter (where is_purchase) as purchases,
        coalesce(sum(revenue) filter (where is_purchase), 0) as purchase_revenue,
        sum(revenue) as revenue,
        sum(margin) as margin,
        sum(coupon_cost) as coupon_cost,
        count(*) filter (where coupon_cost > 0) as coupons_redeemed
    from {{ ref('stg_winback__orders') }}
    where {{ is_to_build('ordered_on', ref('int_source_days')) }}
    group by customer_id, ordered_on

),

top_categories as (

    select distinct on (sold.customer_id, sold.event_day)
        sold.customer_id,
        sold.event_day,
        categories.category_id
    from {{ ref('int_category_days') }} as sold
    inner join {{ ref('categories') }} as categories on sold.category = categories.category
    where {{ is_to_build('sold.event_day', ref('int_source_days')) }}
    order by
        sold.customer_id asc, sold.event_day asc, sold.revenue desc nulls last, sold.category asc

),

offer_days as (

    select
        offers.customer_id,
        offers.offered_on as event_day,
        count(*) filter (where offers.coupon_id <> 'none') as coupons_offered,
        (array_agg(offers.coupon_id order by offers.offered_at, offers.offer_id))[1] as coupon_id,
        (array_agg(offers.propensity order by offers.offered_at, offers.offer_id))[1] as propensity,
        (array_agg(offers.is_own order by offers.offered_at, offers.offer_id))[1] as is_own,
        coalesce(sum(coupons.contact_cost) filter (where offers.coupon_id <> 'none'), 0)
            as contact_cost
    from {{ ref('stg_winback__coupon_offers') }} as offers
    left join {{ ref('stg_winback__coupons') }} as coupons on offers.coupon_id = coupons.coupon_id
    where {{ is_to_build('offers.offered_on', ref('int_source_days')) }}
    group by offers.customer_id, offers.offered_on

)

select
    coalesce(order_days.customer_id, offer_days.customer_id) as customer_id,
    coalesce(order_days.event_day, offer_days.event_day) as event_day,

    cast(coalesce(order_days.orders, 0) as integer) as orders,
    cast(coalesce(order_days.purchases, 0) as integer) as purchases,
    coalesce(order_days.purchase_revenue, 0) as purchase_revenue,
    coalesce(order_days.revenue, 0) as revenue,
    coalesce(order_days.margin, 0) as margin,
    coalesce(order_days.coupon_cost, 0) as coupon_cost,
    cast(coalesce(order_days.coupons_redeemed, 0) as integer) as coupons_redeemed,
    top_categories.category_id,

    cast(coalesce(offer_days.coupons_offered, 0) as integer) as coupons_offered,
    offer_days.coupon_id,
    offer_days.propensity,
    offer_days.is_own,
    coalesce(offer_days.contact_cost, 0) as contact_cost
from order_days
full join offer_days
    on
        order_days.customer_id = offer_days.customer_id
        and order_days.event_day = offer_days.event_day
left join top_categories
    on
        order_days.customer_id = top_categories.customer_id
        and order_days.event_day = top_categories.event_day
