{# The decision date as SQL: var `as_of`, else today in the configured timezone. #}
{% macro as_of_date() -%}
cast('{{ var("as_of") or today() }}' as date)
{%- endmacro %}

{% macro today() -%}
{{ run_started_at.astimezone(modules.pytz.timezone(var("timezone"))).date() }}
{%- endmacro %}

{# The instant at which as_of begins: only events before it exist for this build. #}
{% macro as_of_midnight() -%}
(cast({{ as_of_date() }} as timestamp) at time zone '{{ var("timezone") }}')
{%- endmacro %}

{# The calendar day of an instant in the configured timezone. #}
{% macro local_day(instant) -%}
cast({{ instant }} at time zone '{{ var("timezone") }}' as date)
{%- endmacro %}

{# The columns by which every mart says which run wrote it. #}
{% macro run_columns() -%}
{{ as_of_date() }} as as_of,
    cast('{{ var("run_id") }}' as text) as run_id
{%- endmacro %}

{% macro output_schema() -%}
{{ var("output_schema") or target.schema }}
{%- endmacro %}
