with source as (

    select distinct
        period_start,
        period_end,
        amount
    from {{ source('winback_raw', 'budgets') }}
    where period_start <= {{ as_of_date() }}

)

select
    cast(amount as numeric) as amount,

    cast(period_start as date) as period_start,
    cast(period_end as date) as period_end
from source
