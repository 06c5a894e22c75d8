with source as (

    select distinct
        order_id,
        customer_id,
        ordered_at,
        revenue,
        margin,
        coupon_cost,
        coupon_offer_id
    from {{ source('winback_raw', 'orders') }}
    where ordered_at < {{ as_of_midnight() }}

)

select
    cast(order_id as text) as order_id,
    cast(customer_id as text) as customer_id,
    cast(coupon_offer_id as text) as coupon_offer_id,

    cast(revenue as numeric) as revenue,
    cast(coalesce(margin, revenue * {{ var('default_margin_rate') }}) as numeric) as margin,
    cast(coalesce(coupon_cost, 0) as numeric) as coupon_cost,

    revenue >= 0 as is_purchase,

    ordered_at,
    {{ local_day('ordered_at') }} as ordered_on
from source
