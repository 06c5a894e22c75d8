{{ config(materialized='table') }}

with groups as (

    select
        as_of,
        run_id,
        valid_to,
        holdout_share,
        treatment_group,
        sum(customers) as customers,
        sum(buyers) as buyers,
        sum(cast(profit as numeric)) as profit,
        sum(cast(profit_squares as numeric)) as profit_squares,
        sum(cast(expected_profit as numeric)) as expected_profit,
        sum(cast(expected_uplift as numeric)) as expected_uplift,
        sum(cast(expected_cost as numeric)) as expected_cost,
        sum(cast(coupon_cost as numeric)) filter (where coupon_id <> 'none') as coupon_cost,
        sum(customers) filter (where coupon_id <> 'none') as customers_chosen,
        sum(customers_offered) as customers_offered
    from {{ ref('forecast_vs_actual') }}
    group by as_of, run_id, valid_to, holdout_share, treatment_group

),

moments as (

    select
        *,
        profit / customers as mean_profit,
        {{ sample_variance('customers', 'profit', 'profit_squares') }} as variance
    from groups

),

compared as (

    select
        treated.*,
        held.customers as held_customers,
        held.buyers as held_buyers,
        held.mean_profit as held_profit,
        held.customers_offered as held_offered,
        {{ welch_squared_error(
            'treated.variance', 'treated.customers', 'held.variance', 'held.customers'
        ) }} as squared_error,
        {{ welch_degrees_of_freedom(
            'treated.variance', 'treated.customers', 'held.variance', 'held.customers'
        ) }} as degrees_of_freedom,
        {{ sample_ratio_z(
            'held.customers', '(treated.customers + held.customers)', 'treated.holdout_share'
        ) }} as sample_ratio_z
    from moments as treated
    left join moments as held
        on
            treated.as_of = held.as_of
            and held.treatment_group = 'holdout'
    where treated.treatment_group = 'treatment'

),

-- and what the log promised when the decisions were made
estimated as (

    select
        compared.*,
        compared.mean_profit - compared.held_profit as incremental_profit,
        sqrt(compared.squared_error)
        * ({{ t_quantile('compared.degrees_of_freedom') }}) as half_width,
        judged.value as estimated_profit,
        judged.lower as estimated_lower,
        judged.upper as estimated_upper
    from compared
    left join {{ source('winback_outputs', 'policy_evaluations') }} as judged
        on
            compared.run_id = judged.run_id
            and judged.policy = 'challenger - none, window'

)

select
    as_of,
    run_id,
    valid_to,

    cast(customers as bigint) as treated_customers,
    cast(coalesce(held_customers, 0) as bigint) as holdout_customers,
    cast(buyers as bigint) as treated_buyers,
    cast(coalesce(held_buyers, 0) as bigint) as holdout_buyers,
    cast(mean_profit as double precision) as treated_profit,
    cast(held_profit as double precision) as holdout_profit,
    cast(incremental_profit as double precision) as incremental_profit,
    cast(sqrt(squared_error) as double precision) as standard_error,
    cast(degrees_of_freedom as double precision) as degrees_of_freedom,
    cast(incremental_profit - half_width as double precision) as lower,
    cast(incremental_profit + half_width as double precision) as upper,
    estimated_profit,
    estimated_lower,
    estimated_upper,
    incremental_profit - half_width <= estimated_upper
    and estimated_lower <= incremental_profit + half_width as estimate_holds,

    holdout_share,
    cast(sample_ratio_z as double precision) as sample_ratio_z,
    {{ sample_ratio_ok('sample_ratio_z') }} as sample_ratio_ok,

    cast(customers_chosen as bigint) as customers_chosen,
    cast(customers_offered as bigint) as treated_offered,
    cast(coalesce(held_offered, 0) as bigint) as holdout_offered,
    cast(expected_profit / customers as double precision) as expected_profit,
    cast(expected_uplift / customers as double precision) as expected_uplift,
    cast(expected_cost as double precision) as expected_cost,
    cast(coalesce(coupon_cost, 0) as double precision) as coupon_cost
from estimated
