with source as (

    select distinct
        cast(coupon_id as text) as coupon_id,
        label,
        face_value,
        contact_cost,
        channel
    from {{ source('winback_raw', 'coupons') }}

),

with_none as (

    select * from source
    union all
    select
        'none' as coupon_id,
        'No coupon' as label,
        0 as face_value,
        0 as contact_cost,
        'none' as channel
    where not exists (
        select 1 from source
        where source.coupon_id = 'none'
    )

)

select
    coupon_id,

    cast(coalesce(label, coupon_id) as text) as label,
    cast(coalesce(channel, 'email') as text) as channel,

    cast(face_value as numeric) as face_value,
    cast(coalesce(contact_cost, 0) as numeric) as contact_cost
from with_none
