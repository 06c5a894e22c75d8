{{ config(materialized='view') }}

with newest as (

    select max(as_of) as as_of
    from {{ source('winback_outputs', 'runs') }}
    where status = 'published'

)

select
    recommendations.as_of,
    recommendations.run_id,
    recommendations.customer_id,
    recommendations.decision_id,
    recommendations.coupon_id,
    recommendations.channel,
    recommendations.treatment_group,
    recommendations.is_exploration,
    recommendations.propensity,
    recommendations.expected_profit,
    recommendations.baseline_profit,
    recommendations.expected_uplift,
    recommendations.expected_cost,
    recommendations.q_value,
    recommendations.long_run_uplift,
    recommendations.p_alive,
    recommendations.p_purchase,
    recommendations.state,
    recommendations.reason,
    recommendations.suppression_reason,
    recommendations.valid_from,
    recommendations.valid_to,
    recommendations.model_version,
    recommendations.config_hash,
    recommendations.code_version,
    recommendations.created_at,
    recommendations.next_best_coupon_id,
    recommendations.next_best_long_run_uplift,
    recommendations.next_best_expected_cost,
    recommendations.situation,
    recommendations.net_value,
    recommendations.next_best_behind,
    recommendations.next_best_limits
from {{ source('winback_outputs', 'recommendations') }} as recommendations
inner join newest on recommendations.as_of = newest.as_of
