with offers as (

    select distinct
        cast(offer_id as text) as offer_id,
        cast(customer_id as text) as customer_id,
        cast(coupon_id as text) as coupon_id,
        offered_at,
        cast(propensity as numeric) as propensity
    from {{ source('winback_raw', 'coupon_offers') }}
    where offered_at < {{ as_of_midnight() }}

),

-- A campaign tool reports a decision back under its id. One that has ids of its own shows by the
-- propensity, to the last digit, that it drew nothing itself.
own as (

    select distinct offers.offer_id
    from offers
    inner join {{ source('winback_outputs', 'decisions') }} as decisions
        on
            offers.customer_id = decisions.customer_id
            and offers.coupon_id = decisions.coupon_id
            and (
                offers.offer_id = decisions.decision_id
                or (
                    {{ local_day('offers.offered_at') }} >= decisions.valid_from
                    and {{ local_day('offers.offered_at') }} < decisions.valid_to
                    and abs(offers.propensity - decisions.propensity) < 1e-9
                )
            )

),

carried_out as (

    select
        offers.*,
        own.offer_id is not null as is_own
    from offers
    left join own on offers.offer_id = own.offer_id
    {% if var('decisions_are_offers') %}
    union all
    select
        decisions.decision_id as offer_id,
        decisions.customer_id,
        decisions.coupon_id,
        cast(decisions.as_of as timestamp) at time zone '{{ var("timezone") }}' as offered_at,
        cast(decisions.propensity as numeric) as propensity,
        true as is_own
    from {{ source('winback_outputs', 'decisions') }} as decisions
    -- a campaign tool that reports back knows better when it sent the coupon
    left join offers on decisions.decision_id = offers.offer_id
    where decisions.as_of < {{ as_of_date() }} and offers.offer_id is null
    {% endif %}

)

select
    offer_id,
    customer_id,
    coupon_id,

    propensity,
    is_own,

    offered_at,
    {{ local_day('offered_at') }} as offered_on
from carried_out
