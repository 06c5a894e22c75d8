{#
  Whether a row of the source `coupon_offers` carries out a published decision. A campaign tool
  reports a decision back under its id. One that has ids of its own shows by the propensity, to the
  last digit, that it drew nothing itself.
#}
{% macro carries_out(offers, decisions) -%}
cast({{ offers }}.customer_id as text) = {{ decisions }}.customer_id
    and cast({{ offers }}.coupon_id as text) = {{ decisions }}.coupon_id
    and (
        cast({{ offers }}.offer_id as text) = {{ decisions }}.decision_id
        or (
            {{ local_day(offers ~ ".offered_at") }} >= {{ decisions }}.valid_from
            and {{ local_day(offers ~ ".offered_at") }} < {{ decisions }}.valid_to
            and abs(cast({{ offers }}.propensity as numeric) - {{ decisions }}.propensity) < 1e-9
        )
    )
{%- endmacro %}

{#
  Whether a published decision counts as an offer by itself (`decisions_are_offers`): its day is
  over, and no campaign tool, which knows better when it sent the coupon, reported it.
#}
{% macro counts_as_offer(decisions) -%}
{{ decisions }}.as_of < {{ as_of_date() }}
    and not exists (
        select 1
        from {{ source("winback_raw", "coupon_offers") }} as reported
        where
            cast(reported.offer_id as text) = {{ decisions }}.decision_id
            and reported.offered_at < {{ as_of_midnight() }}
    )
{%- endmacro %}
