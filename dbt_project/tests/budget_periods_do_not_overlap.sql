{{ config(store_failures=true) }}

-- A date has one budget.
with periods as (

    select
        period_start,
        period_end,
        lag(period_end) over (order by period_start, period_end) as previous_end
    from {{ ref('stg_winback__budgets') }}

)

select
    period_start,
    period_end,
    previous_end
from periods
where period_start < previous_end
