-- The sources' rows as they are, duplicates included: what staging makes of them depends on nothing
-- else, and a sum of hashes is one parallel scan.
with events as (

    select
        {{ local_day('orders.ordered_at') }} as event_day,
        hash_record_extended(
            row(
                orders.order_id,
                orders.customer_id,
                orders.ordered_at,
                orders.revenue,
                coalesce(orders.margin, orders.revenue * {{ var('default_margin_rate') }}),
                orders.coupon_cost,
                orders.coupon_offer_id
            ),
            1
        ) as row_hash
    from {{ source('winback_raw', 'orders') }} as orders
    where orders.ordered_at < {{ as_of_midnight() }}
    union all
    select
        {{ local_day('orders.ordered_at') }} as event_day,
        hash_record_extended(row(items.order_id, items.category, items.revenue), 2) as row_hash
    from {{ source('winback_raw', 'order_items') }} as items
    inner join {{ source('winback_raw', 'orders') }} as orders
        on cast(items.order_id as text) = cast(orders.order_id as text)
    where orders.ordered_at < {{ as_of_midnight() }}
    union all
    select
        {{ local_day('offers.offered_at') }} as event_day,
        hash_record_extended(
            row(
                offers.offer_id,
                offers.customer_id,
                offers.coupon_id,
                offers.offered_at,
                offers.propensity,
                decisions.decision_id is not null,
                coupons.contact_cost
            ),
            3
        ) as row_hash
    from {{ source('winback_raw', 'coupon_offers') }} as offers
    left join {{ source('winback_outputs', 'decisions') }} as decisions
        on {{ carries_out('offers', 'decisions') }}
    left join {{ ref('stg_winback__coupons') }} as coupons
        on cast(offers.coupon_id as text) = coupons.coupon_id
    where offers.offered_at < {{ as_of_midnight() }}
    {% if var('decisions_are_offers') %}
    union all
    select
        decisions.as_of as event_day,
        hash_record_extended(
            row(
                decisions.decision_id,
                decisions.customer_id,
                decisions.coupon_id,
                decisions.propensity,
                coupons.contact_cost
            ),
            4
        ) as row_hash
    from {{ source('winback_outputs', 'decisions') }} as decisions
    left join {{ ref('stg_winback__coupons') }} as coupons
        on decisions.coupon_id = coupons.coupon_id
    where {{ counts_as_offer('decisions') }}
    {% endif %}

)

select
    event_day,
    {{ as_of_date() }} as as_of,
    concat(count(*), '/', sum(row_hash)) as checksum
from events
group by event_day
