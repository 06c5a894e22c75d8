with event_days as (

    select * from {{ ref('int_event_days') }}

),

numbers as (

    select
        categories.category_id,
        categories.category,
        min(firsts.event_day) as first_day
    from {{ ref('categories') }} as categories
    inner join {{ ref('int_category_firsts') }} as firsts on categories.category = firsts.category
    group by categories.category_id, categories.category

),

-- a day's rows hold numbers of categories seen by then; a category that comes later leaves them
number_days as (

    select
        event_days.event_day,
        sum(hash_record_extended(row(numbers.category_id, numbers.category), 0)) as checksum
    from event_days
    inner join numbers on event_days.event_day >= numbers.first_day
    group by event_days.event_day

),

-- like an event, a budget shows in the snapshots of the day after
budget_days as (

    select
        period_start - 1 as event_day,
        sum(hash_record_extended(row(period_end, amount), 0)) as checksum
    from {{ ref('stg_winback__budgets') }}
    group by period_start

)

select
    coalesce(event_days.event_day, budget_days.event_day) as event_day,
    {{ as_of_date() }} as as_of,
    event_days.event_day is not null as has_events,
    concat(
        event_days.checksum,
        '/', number_days.checksum,
        '/', budget_days.checksum,
        '/', {{ var('decision_days') }}
    ) as checksum
from event_days
left join number_days on event_days.event_day = number_days.event_day
full join budget_days on event_days.event_day = budget_days.event_day
