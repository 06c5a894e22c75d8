with event_days as (

    select
        event_day,
        count(*) as customers,
        sum(coupon_cost) as coupon_cost,
        sum(hashtextextended(cast(customer_days as text), 0)) as checksum
    from {{ ref('int_customer_days') }} as customer_days
    group by event_day

),

budget_days as (

    select
        period_start as event_day,
        0 as customers,
        0 as coupon_cost,
        sum(hashtextextended(cast(budgets as text), 0)) as checksum
    from {{ ref('stg_winback__budgets') }} as budgets
    group by period_start

),

days as (

    select * from event_days
    union all
    select * from budget_days

)

select
    event_day,
    {{ as_of_date() }} as as_of,
    cast(sum(customers) as bigint) as customers,
    sum(coupon_cost) as coupon_cost,
    cast(sum(checksum) as text) || '/{{ var("decision_days") }}' as checksum
from days
group by event_day
