-- Lines have no id: two equal lines are two products, so nothing is removed here.
select
    cast(order_id as text) as order_id,

    cast(coalesce(category, 'unknown') as text) as category,

    cast(quantity as numeric) as quantity,
    cast(revenue as numeric) as revenue
from {{ source('winback_raw', 'order_items') }}
