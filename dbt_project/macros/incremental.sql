{#
  The intermediate models, customer_snapshots and closed_windows keep what they wrote for days whose
  fingerprint is still the one they were built from. Each remembers its fingerprints in the transaction that
  writes its rows (remember_days): a build that fails in between leaves nothing undescribed, and
  the next one writes what is missing.
#}

{#
  The days that a model has to write again, as a list of ISO dates: those with another fingerprint
  in `days` than in the model's last build, on either side. None means all, as nothing is kept.
#}
{% macro days_to_build(model_name, days) %}
{% set built = ref("int_days_built") %}
{% if not (execute and load_relation(built) and load_relation(days)) %}{{ return(none) }}{% endif %}
{% set fingerprints %}
select
    cast(coalesce(current_days.event_day, built.event_day) as text) as event_day,
    current_days.checksum is not distinct from built.checksum as is_kept
from {{ days }} as current_days
full join (
    select * from {{ built }} as of_all_models
    where of_all_models.model_name = '{{ model_name }}'
) as built
    on current_days.event_day = built.event_day
order by 1
{% endset %}
{% set found = run_query(fingerprints).rows %}
{% set changed = found | rejectattr("is_kept") | map(attribute="event_day") | list %}
{{ return(none if changed | length == found | length else changed) }}
{% endmacro %}

{# Condition: the day is one of those; none means all. #}
{% macro is_one_of(day, days) -%}
{% if days is none %}true{% elif not days %}false{% else -%}
{{ day }} in ('{{ days | join("', '") }}')
{%- endif %}
{%- endmacro %}

{# Condition: the row's day is one of those that this model has to write again. #}
{% macro is_to_build(day, days) -%}
{% set built = ref("int_days_built") %}
{{ is_one_of(day, days_to_build(this.name, days) if is_incremental() else none) }}
{%- endmacro %}

{# Pre-hook: remove the days that this build writes again. #}
{% macro delete_days_to_build(days) -%}
{% if is_incremental() %}
{% set changed = days_to_build(this.name, days) %}
{% if changed is none %}truncate {{ this }}{% else %}
delete from {{ this }} where {{ is_one_of("event_day", changed) }}
{% endif %}
{% endif %}
{%- endmacro %}

{# Post-hook, in the model's transaction: what its rows now stand for. #}
{% macro remember_days(days) -%}
delete from {{ ref("int_days_built") }} where model_name = '{{ this.name }}';
insert into {{ ref("int_days_built") }} (model_name, event_day, as_of, checksum)
select '{{ this.name }}', event_day, as_of, checksum from {{ days }}
{%- endmacro %}

{#
  Pre-hook of int_customer_totals: rows before the first changed day hold, and so do those of
  customers without an event on a changed day, before or now. The other rows go; the last totals
  before that day are set aside in `totals_before`, from which the model goes on.
#}
{% macro set_totals_aside(days) -%}
{% if is_incremental() %}
{% set changed = days_to_build(this.name, days) %}
{% if changed is none %}truncate {{ this }}{% else %}
create temporary table totals_before on commit drop as
with changed_customers as (
    select customer_id from {{ ref("int_customer_days") }}
    where {{ is_one_of("event_day", changed) }}
    union
    select customer_id from {{ this }}
    where {{ is_one_of("event_day", changed) }} and {{ is_from("next_event_day", changed) }}
)

select changed_customers.customer_id as changed_customer_id, totals.*
from changed_customers
left join {{ this }} as totals
    on
        changed_customers.customer_id = totals.customer_id
        and not {{ is_from("totals.event_day", changed) }}
        and {{ is_from("totals.next_event_day", changed) }};
analyze totals_before;
delete from {{ this }} as totals
using totals_before
where
    totals.customer_id = totals_before.changed_customer_id
    and {{ is_from("totals.next_event_day", changed) }}
{% endif %}
{% endif %}
{%- endmacro %}

{# Condition: the day is not before the first of those. #}
{% macro is_from(day, days) -%}
{% if not days %}false{% else %}{{ day }} >= '{{ days[0] }}'{% endif %}
{%- endmacro %}

{# Pre-hook: a run replaces the rows of its own as_of, also where it finds none now. #}
{% macro delete_this_as_of() -%}
{% if is_incremental() %}delete from {{ this }} where as_of = {{ as_of_date() }}{% endif %}
{%- endmacro %}

{#
  Incremental strategy of both: the dates that are not kept leave the table, once the new rows are
  made (from those of windows that close, too), and before they come in.
#}
{% macro get_incremental_snapshot_dates_sql(arguments) -%}
{% set table = arguments["target_relation"] %}
{% set dates %}
-- one date after the other by the index: a list of all rows' dates would read all rows
with recursive written as (
    select min(first_rows.snapshot_date) as snapshot_date
    from {{ table }} as first_rows
    union all
    select (
        select min(later_rows.snapshot_date)
        from {{ table }} as later_rows
        where later_rows.snapshot_date > written.snapshot_date
    )
    from written
    where written.snapshot_date is not null
)

select
    cast(written.snapshot_date as text) as snapshot_date,
    kept.snapshot_date is not null as is_kept
from written
left join {{ ref("int_snapshot_dates") }} as kept
    on written.snapshot_date = kept.snapshot_date and not kept.needs_build
where written.snapshot_date is not null
{% endset %}
{% set found = run_query(dates).rows %}
{% set removed = found | rejectattr("is_kept") | map(attribute="snapshot_date") | list %}
{% if removed | length == found | length %}truncate {{ table }};{% else %}
delete from {{ table }} where {{ is_one_of("snapshot_date", removed) }};
{% endif %}
{{ get_incremental_append_sql(arguments) }}
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
