{#
  Tests of staged rows that read again only what a change can have made wrong: rows of days whose
  fingerprint differs from the one that int_category_days was built from. That model waits for
  these tests, so all other days have passed them; a full refresh tests everything.
#}

{#
  Fails with one row per id that stands for several different rows. A repeated id is one of a
  changed day, beside another of these days or beside a row of `source` (column `at`) of any other.
#}
{% test unique_in_changed_days(model, column_name, day, source, at) %}
{% set days = days_to_build("int_category_days", ref("int_event_days")) %}

with changed as (

    select {{ column_name }}
    from {{ model }}
    where {{ is_one_of(day, days) }}

)

select
    {{ column_name }} as unique_field,
    count(*) as n_records
from changed
group by {{ column_name }}
having count(*) > 1
{% if days %}
union all
select
    cast(kept.{{ column_name }} as text) as unique_field,
    count(*) as n_records
from {{ source }} as kept
where
    cast(kept.{{ column_name }} as text) in (select changed.{{ column_name }} from changed)
    and kept.{{ at }} < {{ as_of_midnight() }}
    and not {{ is_one_of(local_day("kept." ~ at), days) }}
group by kept.{{ column_name }}
{% endif %}

{% endtest %}

{# Fails with one row per value of a changed day that is not in the column `field` of `to`. #}
{% test relationship_in_changed_days(model, column_name, day, to, field) %}
{% set days = days_to_build("int_category_days", ref("int_event_days")) %}

select distinct child.{{ column_name }} as from_field
from {{ model }} as child
left join {{ to }} as parent on child.{{ column_name }} = parent.{{ field }}
where {{ is_one_of("child." ~ day, days) }} and parent.{{ field }} is null

{% endtest %}

{#
  Fails with one row per row that lacks one of the columns. One scan for all of them; rows without a
  date belong to no day, so all rows are read.
#}
{% test complete(model, columns) %}

select {{ columns | join(", ") }}
from {{ model }}
where {{ columns | join(" is null or ") }} is null

{% endtest %}
