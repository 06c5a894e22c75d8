-- The triples stand for exactly the customers of customer_rfm.
with triples as (

    select coalesce(sum(customers), 0) as customers
    from {{ ref('rfm_triples') }}
    where as_of = {{ as_of_date() }}

),

customers as (

    select count(*) as customers
    from {{ ref('customer_rfm') }}
    where as_of = {{ as_of_date() }}

)

select
    triples.customers as customers_in_triples,
    customers.customers as customers_in_rfm
from triples
cross join customers
where triples.customers <> customers.customers
