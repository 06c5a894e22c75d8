-- has_purchased is true of exactly the customers who have a row in customer_rfm.
with known as (

    select customer_id
    from {{ ref('customers_known') }}
    where as_of = {{ as_of_date() }} and has_purchased

),

buyers as (

    select customer_id
    from {{ ref('customer_rfm') }}
    where as_of = {{ as_of_date() }}

)

select coalesce(known.customer_id, buyers.customer_id) as customer_id
from known
full join buyers on known.customer_id = buyers.customer_id
where known.customer_id is null or buyers.customer_id is null
