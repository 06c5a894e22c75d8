{{ config(materialized='incremental', incremental_strategy='append') }}

-- customer_snapshots fills this table in its own transaction: see remember_source_days().
select
    event_day,
    as_of,
    checksum
from {{ ref('int_source_days') }}
where false
