with source as (

    select distinct
        customer_id,
        created_at,
        can_contact
    from {{ source('winback_raw', 'customers') }}

)

select
    cast(customer_id as text) as customer_id,

    coalesce(can_contact, true) as can_contact,
    -- the row of a later customer still carries consent for orders under that id
    coalesce(created_at < {{ as_of_midnight() }}, true) as is_created,

    created_at
from source
