{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook='{{ delete_changed_decisions() }}'
) }}

with windows as (

    select * from {{ ref('int_decision_windows') }}
    {% if is_incremental() %}
    where as_of not in (select built.as_of from {{ this }} as built)
    {% endif %}

),

outcomes as (

    select
        windows.as_of,
        outcome_days.customer_id,
        sum(outcome_days.purchases) as purchases,
        sum(outcome_days.coupons_offered) as coupons_offered,
        sum(outcome_days.coupon_cost) as coupon_cost,
        sum(outcome_days.contact_cost) as contact_cost,
        sum(outcome_days.margin - outcome_days.coupon_cost - outcome_days.contact_cost) as profit
    from windows
    inner join {{ ref('int_customer_days') }} as outcome_days
        on
            windows.as_of <= outcome_days.event_day
            and windows.valid_to > outcome_days.event_day
    group by windows.as_of, outcome_days.customer_id

)

-- numeric sums do not depend on the order of the rows
select
    decided.as_of,
    decided.run_id,
    windows.valid_to,
    windows.holdout_share,
    windows.checksum,
    decided.treatment_group,
    decided.coupon_id,
    count(*) as customers,
    count(*) filter (where outcomes.purchases > 0) as buyers,
    cast(sum(cast(decided.p_purchase as numeric)) as double precision) as expected_buyers,
    count(*) filter (where outcomes.coupons_offered > 0) as customers_offered,
    cast(sum(cast(decided.expected_profit as numeric)) as double precision) as expected_profit,
    cast(coalesce(sum(outcomes.profit), 0) as double precision) as profit,
    cast(coalesce(sum(outcomes.profit * outcomes.profit), 0) as double precision)
        as profit_squares,
    cast(sum(cast(decided.expected_uplift as numeric)) as double precision) as expected_uplift,
    cast(sum(cast(decided.expected_cost as numeric)) as double precision) as expected_cost,
    cast(coalesce(sum(outcomes.coupon_cost), 0) as double precision) as coupon_cost,
    cast(coalesce(sum(outcomes.contact_cost), 0) as double precision) as contact_cost
from {{ source('winback_outputs', 'recommendations') }} as decided
inner join windows
    on
        decided.as_of = windows.as_of
        and decided.run_id = windows.run_id
left join outcomes
    on
        decided.as_of = outcomes.as_of
        and decided.customer_id = outcomes.customer_id
where {{ is_compared('decided') }}
group by
    decided.as_of,
    decided.run_id,
    windows.valid_to,
    windows.holdout_share,
    windows.checksum,
    decided.treatment_group,
    decided.coupon_id
