with offers as (

    select distinct
        cast(offer_id as text) as offer_id,
        cast(customer_id as text) as customer_id,
        cast(coupon_id as text) as coupon_id,
        offered_at,
        cast(propensity as numeric) as propensity
    from {{ source('raw', 'coupon_offers') }}

),

carried_out as (

    select * from offers
    {% if var('decisions_are_offers') %}
    union all
    select
        decision_id as offer_id,
        customer_id,
        coupon_id,
        cast(as_of as timestamp) at time zone '{{ var("timezone") }}' as offered_at,
        cast(propensity as numeric) as propensity
    from {{ source('winback_outputs', 'decisions') }}
    -- a campaign tool that reports back knows better when it sent the coupon
    where decision_id not in (select offers.offer_id from offers where offers.offer_id is not null)
    {% endif %}

)

select
    offer_id,
    customer_id,
    coupon_id,

    propensity,

    offered_at,
    {{ local_day('offered_at') }} as offered_on
from carried_out
where offered_at < {{ as_of_midnight() }}
