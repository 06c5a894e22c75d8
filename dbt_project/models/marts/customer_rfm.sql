{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook='{{ delete_this_as_of() }}',
    indexes=[{'columns': ['as_of', 'customer_id'], 'unique': true}]
) }}

with customers as (

    select
        customer_id,
        purchase_days - 1 as frequency,
        repeat_margin,
        first_purchase_on,
        last_purchase_on
    from {{ ref('int_customer_totals') }}
    where next_event_day = 'infinity' and purchase_days > 0

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
