{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook='{{ delete_this_as_of() }}'
) }}

with windows as (

    select * from {{ ref('int_decision_windows') }}

),

experiment as (

    select
        min(as_of) as first_decision,
        max(as_of) as last_decision,
        count(*) as decisions,
        case
            when min(holdout_share) = max(holdout_share) and count(holdout_share) = count(*)
                then min(holdout_share)
        end as holdout_share
    from windows

),

customers as (

    select
        decided.customer_id,
        min(decided.as_of) as entered_on,
        min(decided.treatment_group) as treatment_group,
        min(decided.treatment_group) <> max(decided.treatment_group) as has_changed_group,
        sum(cast(decided.expected_uplift as numeric)) as expected_uplift
    from {{ source('winback_outputs', 'recommendations') }} as decided
    inner join windows
        on
            decided.as_of = windows.as_of
            and decided.run_id = windows.run_id
    where {{ is_compared('decided') }}
    group by decided.customer_id

),

-- windows of daily decisions overlap: a day counts once, whatever the number of windows it lies in
covered_days as (

    select distinct windows.as_of + passed.n_days as event_day
    from windows
    cross join lateral generate_series(0, windows.valid_to - windows.as_of - 1) as passed (n_days)

),

profits as (

    select
        customers.customer_id,
        customers.treatment_group,
        customers.expected_uplift,
        coalesce(
            sum(outcome_days.margin - outcome_days.coupon_cost - outcome_days.contact_cost), 0
        ) as profit
    from customers
    left join (
        {{ ref('int_customer_days') }} as outcome_days
        inner join covered_days on outcome_days.event_day = covered_days.event_day
    )
        on
            customers.customer_id = outcome_days.customer_id
            and customers.entered_on <= outcome_days.event_day
    where not customers.has_changed_group
    group by customers.customer_id, customers.treatment_group, customers.expected_uplift

),

moments as (

    select
        treatment_group,
        count(*) as customers,
        avg(profit) as mean_profit,
        var_samp(profit) as variance,
        sum(expected_uplift) as expected_uplift
    from profits
    group by treatment_group

),

compared as (

    select
        treated.*,
        held.customers as held_customers,
        held.mean_profit as held_profit,
        {{ welch_squared_error(
            'treated.variance', 'treated.customers', 'held.variance', 'held.customers'
        ) }} as squared_error,
        {{ welch_degrees_of_freedom(
            'treated.variance', 'treated.customers', 'held.variance', 'held.customers'
        ) }} as degrees_of_freedom
    from moments as treated
    left join moments as held on held.treatment_group = 'holdout'
    where treated.treatment_group = 'treatment'

),

changed as (

    select count(*) as customers from customers
    where has_changed_group

),

checked as (

    select
        compared.*,
        changed.customers as customers_left_out,
        experiment.first_decision,
        experiment.last_decision,
        experiment.decisions,
        experiment.holdout_share,
        case
            when changed.customers = 0
                then {{ sample_ratio_z(
                    'compared.held_customers',
                    '(compared.customers + compared.held_customers)',
                    'experiment.holdout_share'
                ) }}
        end as sample_ratio_z
    from compared
    cross join changed
    cross join experiment

)

select
    {{ run_columns() }},
    first_decision,
    last_decision,
    decisions,
    (select count(*) from covered_days) as days_covered,

    customers as treated_customers,
    coalesce(held_customers, 0) as holdout_customers,
    customers_left_out,
    cast(mean_profit as double precision) as treated_profit,
    cast(held_profit as double precision) as holdout_profit,
    cast(mean_profit - held_profit as double precision) as incremental_profit,
    cast(sqrt(squared_error) as double precision) as standard_error,
    cast(degrees_of_freedom as double precision) as degrees_of_freedom,
    cast(
        mean_profit - held_profit - sqrt(squared_error) * ({{ t_quantile('degrees_of_freedom') }})
        as double precision
    ) as lower,
    cast(
        mean_profit - held_profit + sqrt(squared_error) * ({{ t_quantile('degrees_of_freedom') }})
        as double precision
    ) as upper,
    cast((mean_profit - held_profit) * customers as double precision) as total_profit,
    cast(expected_uplift as double precision) as expected_total_profit,

    holdout_share,
    cast(sample_ratio_z as double precision) as sample_ratio_z,
    {{ sample_ratio_ok('sample_ratio_z') }} as sample_ratio_ok
from checked
