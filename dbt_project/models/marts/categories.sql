with first_seen as (

    select
        category,
        min(first_ordered_at) as first_ordered_at
    from {{ ref('int_category_firsts') }}
    group by category

)

select
    {{ run_columns() }},
    cast(row_number() over (order by first_ordered_at, category) as integer) as category_id,
    category
from first_seen
