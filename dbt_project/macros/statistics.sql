{#
  Two groups compared by Welch's test (1947), in SQL: the variances may differ, and do, since only
  one group gets coupons. All macros take SQL expressions and return null where a group is too
  small.
#}

{# Sample variance from the sum and the sum of squares of n values. #}
{% macro sample_variance(n, total, squares) -%}
greatest({{ squares }} - {{ total }} * {{ total }} / nullif({{ n }}, 0), 0) / nullif({{ n }} - 1, 0)
{%- endmacro %}

{# Squared standard error of a difference of two means. #}
{% macro welch_squared_error(variance, n, other_variance, other_n) -%}
{{ variance }} / nullif({{ n }}, 0) + {{ other_variance }} / nullif({{ other_n }}, 0)
{%- endmacro %}

{# Degrees of freedom by Welch and Satterthwaite. #}
{% macro welch_degrees_of_freedom(variance, n, other_variance, other_n) -%}
power({{ welch_squared_error(variance, n, other_variance, other_n) }}, 2) / nullif(
    power({{ variance }} / nullif({{ n }}, 0), 2) / nullif({{ n }} - 1, 0)
    + power({{ other_variance }} / nullif({{ other_n }}, 0), 2) / nullif({{ other_n }} - 1, 0),
    0
)
{%- endmacro %}

{#
  The 0.975 quantile of Student's t (Abramowitz & Stegun 26.7.5): to 0.1 % from 3 degrees of
  freedom on, to six digits from 20 on.
#}
{% macro t_quantile(df) -%}
1.9599639845 + 2.3722712303 / {{ df }} + 2.8224986157 / power({{ df }}, 2)
    + 2.5558496795 / power({{ df }}, 3) + 1.5895340534 / power({{ df }}, 4)
{%- endmacro %}

{# How many standard deviations the holdout is larger than its share of all customers. #}
{% macro sample_ratio_z(held, customers, share) -%}
({{ held }} - {{ customers }} * {{ share }})
    / nullif(sqrt({{ customers }} * {{ share }} * (1 - {{ share }})), 0)
{%- endmacro %}

{# Chance alone is outside in one of a thousand comparisons: sample-ratio checks run every day. #}
{% macro sample_ratio_ok(z) -%}
abs({{ z }}) < 3.29
{%- endmacro %}
