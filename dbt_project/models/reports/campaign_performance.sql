{{ config(materialized='table') }}

with decided as (

    select
        recommendations.as_of,
        recommendations.run_id,
        recommendations.customer_id,
        recommendations.treatment_group,
        recommendations.coupon_id,
        recommendations.expected_cost,
        case when recommendations.coupon_id = 'none' then 0 else coupons.contact_cost end
            as contact_cost,
        runs.budget
    from {{ source('winback_outputs', 'recommendations') }} as recommendations
    inner join {{ source('winback_outputs', 'runs') }} as runs
        on recommendations.run_id = runs.run_id
    left join {{ ref('customers_known') }} as customers
        on
            recommendations.as_of = customers.as_of
            and recommendations.customer_id = customers.customer_id
    left join {{ ref('stg_winback__coupons') }} as coupons
        on recommendations.coupon_id = coupons.coupon_id
    where
        runs.status = 'published'
        and recommendations.as_of + {{ var('decision_days') }} <= {{ as_of_date() }}
        -- holdout and treatment are alike only among those who could get a coupon
        and coalesce(customers.can_contact, true)

),

outcomes as (

    select
        decided.as_of,
        decided.customer_id,
        sum(outcome_days.purchases) as orders,
        sum(outcome_days.margin) as order_profit,
        sum(outcome_days.coupons_redeemed) as coupons_redeemed,
        sum(outcome_days.coupon_cost) as coupon_cost
    from decided
    inner join {{ ref('int_customer_days') }} as outcome_days
        on
            decided.customer_id = outcome_days.customer_id
            and decided.as_of <= outcome_days.event_day
            and decided.as_of + {{ var('decision_days') }} > outcome_days.event_day
    group by decided.as_of, decided.customer_id

),

customers as (

    select
        decided.*,
        coalesce(categories.category, 'no purchase yet') as category,
        coalesce(outcomes.orders, 0) as orders,
        coalesce(outcomes.order_profit, 0) as order_profit,
        coalesce(outcomes.coupons_redeemed, 0) as coupons_redeemed,
        coalesce(outcomes.coupon_cost, 0) as coupon_cost
    from decided
    left join outcomes
        on
            decided.as_of = outcomes.as_of
            and decided.customer_id = outcomes.customer_id
    left join {{ ref('int_customer_totals') }} as totals
        on
            decided.customer_id = totals.customer_id
            and decided.as_of > totals.event_day
            and decided.as_of <= totals.next_event_day
    left join {{ ref('categories') }} as categories
        on totals.category_id = categories.category_id

)

select
    as_of,
    run_id,
    treatment_group,
    coupon_id,
    category,
    count(*) as customers,
    count(*) filter (where orders > 0) as buyers,
    cast(sum(orders) as bigint) as orders,
    cast(sum(order_profit) as double precision) as order_profit,
    cast(sum(coupons_redeemed) as bigint) as coupons_redeemed,
    cast(sum(coupon_cost) as double precision) as coupon_cost,
    cast(coalesce(sum(contact_cost), 0) as double precision) as contact_cost,
    cast(
        (sum(order_profit - coupon_cost) - coalesce(sum(contact_cost), 0)) / count(*)
        as double precision
    ) as profit_per_customer,
    cast(sum(expected_cost) as double precision) as expected_cost,
    budget
from customers
group by as_of, run_id, treatment_group, coupon_id, category, budget
