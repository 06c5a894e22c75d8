{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ delete_days_to_build(ref('int_source_days')) }}",
    post_hook="{{ remember_days(ref('int_source_days')) }}"
) }}

select
    event_day,
    sum(coupon_cost) as coupon_cost
from {{ ref('int_customer_days') }}
where {{ is_to_build('event_day', ref('int_source_days')) }}
group by event_day
