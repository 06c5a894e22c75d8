{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{{ delete_days_to_build(ref('int_event_days')) }}",
    post_hook="{{ remember_days(ref('int_event_days')) }}"
) }}

select
    event_day,
    category,
    min(first_ordered_at) as first_ordered_at
from {{ ref('int_category_days') }}
where {{ is_to_build('event_day', ref('int_event_days')) }}
group by event_day, category
