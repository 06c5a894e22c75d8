{#
  Whom treatment and holdout are compared on: customers who could get a coupon, by consent and a
  purchase before the decision. Both are known before the group plays a part. A recent contact
  (and any later reason) is a consequence of having been treated, so those customers stay in.
#}
{% macro is_compared(decided) -%}
coalesce({{ decided }}.suppression_reason, '') not in ('no_consent', 'no_purchase_yet')
{%- endmacro %}
