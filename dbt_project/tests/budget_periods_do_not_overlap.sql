{{ config(store_failures=true) }}

-- A date has one budget.
select
    budgets.period_start,
    budgets.period_end,
    others.period_start as other_period_start,
    others.period_end as other_period_end
from {{ ref('stg_budgets') }} as budgets
inner join {{ ref('stg_budgets') }} as others
    on
        budgets.period_start < others.period_end
        and others.period_start < budgets.period_end
        and (budgets.period_start, budgets.period_end) < (others.period_start, others.period_end)
