with source_days as (

    select * from {{ ref('int_source_days') }}

),

built as (

    select * from {{ ref('int_days_built') }}
    where model_name in ('customer_snapshots', 'closed_windows')

),

dates as (

    select
        cast(generate_series(
            coalesce(min(event_day) + 1, {{ as_of_date() }}),
            {{ as_of_date() }},
            interval '1 day'
        ) as date) as snapshot_date
    from source_days
    where has_events

),

snapshot_dates as (

    select
        snapshot_date,
        (snapshot_date - date '1970-01-05') % {{ var('decision_days') }} = 0 as is_on_grid,
        snapshot_date + {{ var('decision_days') }} as window_end,
        snapshot_date + {{ var('decision_days') }} <= {{ as_of_date() }} as is_closed
    from dates

),

days_by_model as (

    select
        models.model_name,
        source_days.event_day,
        source_days.checksum
    from (values ('customer_snapshots'), ('closed_windows')) as models (model_name)
    cross join source_days

),

-- What each table has: its last as_of, and the first day that changed since.
states as (

    select
        coalesce(current_days.model_name, built.model_name) as model_name,
        max(built.as_of) as built_as_of,
        coalesce(
            min(coalesce(current_days.event_day, built.event_day))
            filter (where current_days.checksum is distinct from built.checksum),
            cast('infinity' as date)
        ) as changed_on
    from days_by_model as current_days
    full join built
        on
            current_days.model_name = built.model_name
            and current_days.event_day = built.event_day
    group by coalesce(current_days.model_name, built.model_name)

),

-- A table has a date if it had it then, and nothing that its rows are made of has changed.
dates_by_model as (

    select
        states.model_name,
        snapshot_dates.snapshot_date,
        snapshot_dates.is_closed = (snapshot_dates.window_end <= states.built_as_of)
        and (not snapshot_dates.is_closed or snapshot_dates.window_end <= states.changed_on)
            as has_outcomes
    from snapshot_dates
    inner join states
        on
            snapshot_dates.snapshot_date <= states.built_as_of
            and snapshot_dates.snapshot_date <= states.changed_on
    where snapshot_dates.is_on_grid and snapshot_dates.snapshot_date < {{ as_of_date() }}

),

dates_built as (

    select
        snapshot_date,
        bool_or(model_name = 'customer_snapshots') as has_features,
        count(*) filter (where has_outcomes) = 2 as is_kept
    from dates_by_model
    group by snapshot_date

),

budgets as (

    select
        snapshot_dates.snapshot_date,
        budgets.amount,
        coalesce(sum(coupon_costs.coupon_cost), 0) as coupon_cost
    from snapshot_dates
    inner join {{ ref('stg_winback__budgets') }} as budgets
        on
            snapshot_dates.snapshot_date >= budgets.period_start
            and snapshot_dates.snapshot_date < budgets.period_end
    left join {{ ref('int_coupon_costs') }} as coupon_costs
        on
            budgets.period_start <= coupon_costs.event_day
            and snapshot_dates.snapshot_date > coupon_costs.event_day
    group by snapshot_dates.snapshot_date, budgets.period_start, budgets.amount

)

select
    snapshot_dates.snapshot_date,
    {{ as_of_date() }} as as_of,
    snapshot_dates.is_on_grid,
    snapshot_dates.is_closed,
    not coalesce(dates_built.is_kept, false) as needs_build,
    coalesce(dates_built.has_features, false) as has_features,
    cast(
        case
            when budgets.amount is null then null
            when budgets.amount <= 0 then 0
            else greatest(least((budgets.amount - budgets.coupon_cost) / budgets.amount, 1), 0)
        end as double precision
    ) as remaining_budget_pct
from snapshot_dates
left join dates_built on snapshot_dates.snapshot_date = dates_built.snapshot_date
left join budgets on snapshot_dates.snapshot_date = budgets.snapshot_date
where snapshot_dates.is_on_grid or snapshot_dates.snapshot_date = {{ as_of_date() }}
