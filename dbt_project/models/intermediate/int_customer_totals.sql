with totals as (

    select
        customer_id,
        event_day,
        lead(event_day, 1, cast('infinity' as date)) over days as next_event_day,

        sum(cast(purchases > 0 as integer)) over days as purchase_days,
        min(event_day) filter (where purchases > 0) over days as first_purchase_on,
        -- the latest purchase day and its category, compared as a pair
        max(array[event_day - date '1970-01-01', category_id])
        filter (where purchases > 0) over days as last_purchase,

        sum(purchases) over days as purchases,
        sum(purchase_revenue) over days as purchase_revenue,
        sum(margin) over days as margin,
        sum(coupons_offered) over days as coupons_received,
        sum(coupons_redeemed) over days as coupons_redeemed
    from {{ ref('int_customer_days') }}
    window days as (partition by customer_id order by event_day)

)

select
    customer_id,
    event_day,
    next_event_day,

    purchase_days,
    first_purchase_on,
    date '1970-01-01' + last_purchase[1] as last_purchase_on,
    last_purchase[2] as category_id,

    purchases,
    purchase_revenue,
    margin,
    coupons_received,
    coupons_redeemed
from totals
