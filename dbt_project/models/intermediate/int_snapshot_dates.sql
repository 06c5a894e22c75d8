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

-- A day that differs from the last build changes the windows that hold it and all later features;
-- the dates around either as_of changed because windows closed, opened or appeared.
rebuild_by_model as (

    select
        case
            when count(built.event_day) = 0 then cast('-infinity' as date)
            else least(
                min(coalesce(current_days.event_day, built.event_day))
                filter (where current_days.checksum is distinct from built.checksum),
                max(built.as_of),
                {{ as_of_date() }}
            ) - {{ var('decision_days') }}
        end as rebuild_after
    from days_by_model as current_days
    full join built
        on
            current_days.model_name = built.model_name
            and current_days.event_day = built.event_day
    group by coalesce(current_days.model_name, built.model_name)

),

-- of both, as a build may have failed between them
rebuild as (

    select coalesce(min(rebuild_after), cast('-infinity' as date)) as rebuild_after
    from rebuild_by_model

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
    snapshot_dates.snapshot_date > rebuild.rebuild_after as needs_build,
    cast(
        case
            when budgets.amount is null then null
            when budgets.amount <= 0 then 0
            else greatest(least((budgets.amount - budgets.coupon_cost) / budgets.amount, 1), 0)
        end as double precision
    ) as remaining_budget_pct
from snapshot_dates
cross join rebuild
left join budgets on snapshot_dates.snapshot_date = budgets.snapshot_date
where snapshot_dates.is_on_grid or snapshot_dates.snapshot_date = {{ as_of_date() }}
