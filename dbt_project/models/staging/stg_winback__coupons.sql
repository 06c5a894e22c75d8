with with_none as (

    select distinct
        cast(coupon_id as text) as coupon_id,
        label,
        face_value,
        contact_cost,
        channel
    from {{ source('winback_raw', 'coupons') }}
    union all
    select
        added.coupon_id,
        'No coupon' as label,
        0 as face_value,
        0 as contact_cost,
        'none' as channel
    from (values ('none')) as added (coupon_id)
    -- a join, as neither a CTE read twice nor `exists` without a column can be planned in parallel
    left join {{ source('winback_raw', 'coupons') }} as coupons
        on added.coupon_id = cast(coupons.coupon_id as text)
    where coupons.coupon_id is null

)

select
    coupon_id,

    cast(coalesce(label, coupon_id) as text) as label,
    cast(coalesce(channel, 'email') as text) as channel,

    cast(face_value as numeric) as face_value,
    cast(coalesce(contact_cost, 0) as numeric) as contact_cost
from with_none
