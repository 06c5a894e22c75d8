{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook='{{ delete_this_as_of() }}',
    indexes=[{'columns': ['as_of', 'customer_id'], 'unique': true}]
) }}

with days as (

    select
        customer_id,
        event_day,
        purchases,
        margin,
        min(event_day) filter (where purchases > 0) over (partition by customer_id)
            as first_purchase_on
    from {{ ref('int_customer_days') }}

),

customers as (

    select
        customer_id,
        first_purchase_on,
        max(event_day) filter (where purchases > 0) as last_purchase_on,
        cast(count(*) filter (where purchases > 0) - 1 as integer) as frequency,
        sum(margin) filter (where event_day > first_purchase_on) as repeat_margin
    from days
    where first_purchase_on is not null
    group by customer_id, first_purchase_on

)

select
    {{ run_columns() }},
    customer_id,
    frequency,
    last_purchase_on - first_purchase_on as recency_days,
    {{ as_of_date() }} - first_purchase_on as age_days,
    cast(
        case when frequency > 0 then repeat_margin / frequency else 0 end as double precision
    ) as monetary_value,
    first_purchase_on,
    last_purchase_on
from customers
