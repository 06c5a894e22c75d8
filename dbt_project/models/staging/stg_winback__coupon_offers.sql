with offers as (

    -- identical rows are one offer, whatever number of decisions it might carry out
    select
        cast(reported.offer_id as text) as offer_id,
        cast(reported.customer_id as text) as customer_id,
        cast(reported.coupon_id as text) as coupon_id,
        reported.offered_at,
        cast(reported.propensity as numeric) as propensity,
        bool_or(decisions.decision_id is not null) as is_own
    from {{ source('winback_raw', 'coupon_offers') }} as reported
    left join {{ source('winback_outputs', 'decisions') }} as decisions
        on {{ carries_out('reported', 'decisions') }}
    where reported.offered_at < {{ as_of_midnight() }}
    group by
        reported.offer_id,
        reported.customer_id,
        reported.coupon_id,
        reported.offered_at,
        reported.propensity

),

carried_out as (

    select * from offers
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
    where {{ counts_as_offer('decisions') }}
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
