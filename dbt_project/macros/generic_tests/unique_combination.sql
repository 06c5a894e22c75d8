{#
  Fails with one row per combination of the columns that occurs more than once. With `this_run`,
  only rows of this build's as_of are read: tables that keep history were tested before.
#}
{% test unique_combination(model, columns, this_run=false) %}

select
    {{ columns | join(", ") }},
    count(*) as n_records
from {{ model }}
{% if this_run %}where as_of = {{ as_of_date() }}{% endif %}
group by {{ columns | join(", ") }}
having count(*) > 1

{% endtest %}
