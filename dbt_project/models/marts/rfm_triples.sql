{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook='{{ delete_this_as_of() }}',
    indexes=[{'columns': ['as_of', 'frequency', 'recency_days', 'age_days'], 'unique': true}]
) }}

select
    {{ run_columns() }},
    frequency,
    recency_days,
    age_days,
    count(*) as customers
from {{ ref('customer_rfm') }}
where as_of = {{ as_of_date() }}
group by frequency, recency_days, age_days
