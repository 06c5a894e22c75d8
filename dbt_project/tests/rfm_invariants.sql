-- Recency lies within the age, one purchase day has no recency, the dates give the numbers.
select
    customer_id,
    frequency,
    recency_days,
    age_days,
    first_purchase_on,
    last_purchase_on
from {{ ref('customer_rfm') }}
where
    as_of = {{ as_of_date() }}
    and (
        frequency < 0
        or recency_days < frequency
        or recency_days >= age_days
        or (frequency = 0) <> (recency_days = 0)
        or last_purchase_on - first_purchase_on <> recency_days
        or as_of - first_purchase_on <> age_days
    )
