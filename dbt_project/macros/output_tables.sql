{#
  The tables that the daily run fills, in one place. Pure Jinja: dbt creates them at the start of
  every invocation, and the Python operators render this same file, so either may come first.
  `work_schema` holds one run's results until they are published in one transaction.
#}
{% macro create_output_tables(schema, work_schema) %}
create schema if not exists {{ schema }};
create schema if not exists {{ work_schema }};

create table if not exists {{ schema }}.customer_scores (
    as_of date not null,
    run_id text not null,
    customer_id text not null,
    p_alive double precision not null,
    p_purchase double precision not null,
    expected_purchases double precision not null,
    primary key (as_of, customer_id)
);

create table if not exists {{ schema }}.q_table (
    as_of date not null,
    run_id text not null,
    state text not null,
    coupon_id text not null,
    q_value double precision not null,
    visits bigint not null,
    support bigint not null,
    expected_reward double precision not null,
    future_value double precision not null,
    is_supported boolean not null,
    primary key (as_of, state, coupon_id)
);

create table if not exists {{ schema }}.recommendations (
    as_of date not null,
    run_id text not null,
    customer_id text not null,
    decision_id text not null,
    coupon_id text not null,
    channel text,
    treatment_group text not null,
    is_exploration boolean not null,
    propensity double precision not null,
    expected_profit double precision not null,
    baseline_profit double precision not null,
    expected_uplift double precision not null,
    expected_cost double precision not null,
    q_value double precision not null,
    long_run_uplift double precision not null,
    p_alive double precision,
    p_purchase double precision,
    state text,
    reason text not null,
    suppression_reason text,
    valid_from date not null,
    valid_to date not null,
    model_version text not null,
    config_hash text not null,
    code_version text not null,
    created_at timestamptz not null,
    primary key (as_of, customer_id)
);

create table if not exists {{ schema }}.decisions (
    decision_id text primary key,
    as_of date not null,
    run_id text not null,
    customer_id text not null,
    coupon_id text not null,
    propensity double precision not null,
    treatment_group text not null,
    is_exploration boolean not null,
    valid_from date not null,
    valid_to date not null,
    published_at timestamptz not null
);

create table if not exists {{ schema }}.runs (
    run_id text primary key,
    as_of date not null,
    status text not null check (status in ('published', 'held', 'failed', 'dry_run')),
    budget double precision,
    expected_spend double precision,
    dual_price double precision,
    duality_gap double precision,
    metrics jsonb not null,
    started_at timestamptz not null,
    finished_at timestamptz not null
);

create table if not exists {{ schema }}.policy_evaluations (
    as_of date not null,
    run_id text not null,
    policy text not null,
    estimator text not null,
    value double precision,
    lower double precision,
    upper double precision,
    effective_sample_size double precision,
    max_weight double precision,
    primary key (run_id, policy, estimator)
);

create table if not exists {{ schema }}.data_checks (
    as_of date not null,
    run_id text not null,
    suite text not null,
    expectation text not null,
    table_name text not null,
    "column" text,
    severity text not null,
    success boolean not null,
    unexpected_count bigint,
    unexpected_percent double precision,
    description text not null
);

create table if not exists {{ schema }}.policy_benchmark (
    world_id text not null,
    policy text not null,
    week integer not null,
    world text not null,
    family text not null,
    seed integer not null,
    customers integer not null,
    weeks integer not null,
    config jsonb not null,
    budget double precision not null,
    oracle_uplift double precision not null,
    uplift double precision not null,
    percent double precision,
    spend double precision not null,
    spend_share double precision,
    given double precision not null,
    harm double precision not null,
    wasted double precision not null,
    stated_spend double precision,
    wanted_spend double precision,
    week_uplift double precision not null,
    stated_week_uplift double precision,
    stated_uplift double precision,
    cost_slope double precision,
    week_slope double precision,
    uplift_slope double precision,
    purchase_slope double precision,
    seconds double precision not null,
    code_version text not null,
    measured_at timestamptz not null default now(),
    primary key (world_id, policy, week)
);

{% for name in ["customer_scores", "q_table", "recommendations"] %}
create table if not exists {{ work_schema }}.{{ name }} (like {{ schema }}.{{ name }} including all);
{% endfor %}

{#
  Columns that came later, last in new and in older warehouses alike: publishing copies whole rows.
  Altered only where the last of them lacks, since even an alteration without effect waits for every
  reader.
#}
{% set recommendations_later = [
    "next_best_coupon_id text", "next_best_long_run_uplift double precision",
    "next_best_expected_cost double precision", "situation text", "net_value double precision",
    "next_best_behind text", "next_best_limits text",
] %}
{% set evaluations_later = ["alarm text", "propensities text"] %}
{% set benchmark_later = [
    "value_estimate double precision", "value_lower double precision",
    "value_upper double precision", "value_true double precision",
    "value_oracle double precision",
] %}
{% for at, name, columns in [
    (schema, "recommendations", recommendations_later),
    (work_schema, "recommendations", recommendations_later),
    (schema, "policy_evaluations", evaluations_later),
    (schema, "policy_benchmark", benchmark_later),
] %}
do $$
begin
    if not exists (
        select from information_schema.columns
        where
            table_schema = '{{ at }}'
            and table_name = '{{ name }}'
            and column_name = '{{ (columns | last).split(" ") | first }}'
    ) then
        alter table {{ at }}.{{ name }}
        add column if not exists {{ columns | join(", add column if not exists ") }};
    end if;
end $$;
{% endfor %}
{% endmacro %}
