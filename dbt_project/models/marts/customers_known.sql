{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    pre_hook='{{ delete_this_as_of() }}',
    indexes=[{'columns': ['as_of', 'customer_id'], 'unique': true}]
) }}

with seen as (

    select
        customer_id,
        sum(orders) > 0 as has_ordered,
        sum(purchases) > 0 as has_purchased,
        max(event_day) filter (where coupons_offered > 0) as last_coupon_on,
        sum(coupons_offered) filter (
            where event_day > {{ as_of_date() }} - {{ var('max_contacts_days') }}
        ) as contacts_in_window
    from {{ ref('int_customer_days') }}
    group by customer_id

)

select
    {{ run_columns() }},
    coalesce(seen.customer_id, customers.customer_id) as customer_id,
    coalesce(customers.can_contact, true) as can_contact,
    coalesce(seen.has_purchased, false) as has_purchased,
    seen.last_coupon_on,
    cast(coalesce(seen.contacts_in_window, 0) as integer) as contacts_in_window
from seen
full join {{ ref('stg_winback__customers') }} as customers
    on seen.customer_id = customers.customer_id
where seen.has_ordered or customers.is_created
