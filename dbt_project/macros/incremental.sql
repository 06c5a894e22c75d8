{# Pre-hook: a run replaces the rows of its own as_of, also where it finds none now. #}
{% macro delete_this_as_of() -%}
{% if is_incremental() %}delete from {{ this }} where as_of = {{ as_of_date() }}{% endif %}
{%- endmacro %}

{# Pre-hook of customer_snapshots: remove every row after the last date that is kept. #}
{% macro delete_snapshots_to_build() -%}
{% if is_incremental() %}
delete from {{ this }}
where snapshot_date > (
    select coalesce(max(snapshot_date), cast('-infinity' as date))
    from {{ ref("int_snapshot_dates") }}
    where not needs_build
)
{% endif %}
{%- endmacro %}

{#
  Post-hook of customer_snapshots, in its transaction: what the table now stands for. Were this a
  model after it, a failing test in between would leave a table that nothing describes.
#}
{% macro remember_source_days() -%}
delete from {{ ref("int_source_days_built") }};
insert into {{ ref("int_source_days_built") }} (event_day, as_of, checksum)
select event_day, as_of, checksum from {{ ref("int_source_days") }}
{%- endmacro %}

{# Pre-hook of forecast_vs_actual: remove decisions replaced, reopened or changed since. #}
{% macro delete_changed_decisions() -%}
{% if is_incremental() %}
delete from {{ this }} as built
where not exists (
    select 1
    from {{ ref("int_decision_windows") }} as windows
    where windows.as_of = built.as_of and windows.checksum = built.checksum
)
{% endif %}
{%- endmacro %}
