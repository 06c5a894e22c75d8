with purchases as (

    select * from {{ ref('stg_winback__orders') }}
    where is_purchase

),

lines as (

    select
        purchases.customer_id,
        purchases.ordered_on as event_day,
        purchases.ordered_at,
        coalesce(items.category, 'unknown') as category,
        case when items.order_id is null then purchases.revenue else items.revenue end as revenue
    from purchases
    left join {{ ref('stg_winback__order_items') }} as items on purchases.order_id = items.order_id

)

select
    customer_id,
    event_day,
    category,
    sum(revenue) as revenue,
    min(ordered_at) as first_ordered_at
from lines
group by customer_id, event_day, category
