{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='append_new_columns',
    pre_hook='{{ delete_this_as_of() }}',
    indexes=[{'columns': ['as_of', 'customer_id'], 'unique': true}]
) }}

with totals as (

    select * from {{ ref('int_customer_totals') }}
    where next_event_day = 'infinity'

),

contacts as (

    select
        customer_id,
        sum(coupons_offered) as contacts_in_window
    from {{ ref('int_customer_days') }}
    where event_day > {{ as_of_date() }} - {{ var('max_contacts_days') }}
    group by customer_id

)

select
    {{ run_columns() }},
    coalesce(totals.customer_id, customers.customer_id) as customer_id,
    coalesce(customers.can_contact, true) as can_contact,
    coalesce(totals.purchases > 0, false) as has_purchased,
    totals.last_coupon_on,
    cast(coalesce(contacts.contacts_in_window, 0) as integer) as contacts_in_window
from totals
full join {{ ref('stg_winback__customers') }} as customers
    on totals.customer_id = customers.customer_id
left join contacts on totals.customer_id = contacts.customer_id
where totals.orders > 0 or customers.is_created
