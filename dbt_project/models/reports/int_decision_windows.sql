{{ config(materialized='view', schema='staging') }}

with published as (

    select
        runs.as_of,
        runs.run_id,
        runs.finished_at,
        cast(runs.metrics -> 'settings' ->> 'holdout_share' as double precision) as holdout_share,
        -- null for a run that a later one of its date replaced
        (
            select recommendations.valid_to
            from {{ source('winback_outputs', 'recommendations') }} as recommendations
            where
                recommendations.as_of = runs.as_of
                and recommendations.run_id = runs.run_id
            order by recommendations.customer_id
            limit 1
        ) as valid_to
    from {{ source('winback_outputs', 'runs') }} as runs
    where runs.status = 'published'

)

select
    published.as_of,
    published.run_id,
    published.valid_to,
    published.holdout_share,
    -- a run may be repeated under its old name
    md5(concat_ws(
        '/',
        published.run_id,
        extract(epoch from published.finished_at),
        string_agg(source_days.checksum, ',' order by source_days.event_day)
    )) as checksum
from published
left join {{ ref('int_source_days') }} as source_days
    on
        published.as_of <= source_days.event_day
        and published.valid_to > source_days.event_day
where published.valid_to <= {{ as_of_date() }}
group by
    published.as_of,
    published.run_id,
    published.finished_at,
    published.valid_to,
    published.holdout_share
