"""winback_daily: from the orders in the warehouse to today's coupons, step by step."""

from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.sdk import DAG, Asset, ExceptionRetryPolicy, RetryAction, RetryRule, chain

from winback.models.errors import (
    DataError,
    HeldError,
    NotFittedError,
    SettingsError,
    StoreUnavailableError,
)
from winback.models.settings import load_settings
from winback.operators.allocate_coupons import AllocateCouponsOperator
from winback.operators.check_data import CheckDataOperator
from winback.operators.check_drift import CheckDriftOperator
from winback.operators.dbt_build import DbtBuildOperator
from winback.operators.evaluate_policy import EvaluatePolicyOperator
from winback.operators.finish_run import FinishRunOperator
from winback.operators.fit_response import FitResponseOperator
from winback.operators.fit_survival import FitSurvivalOperator
from winback.operators.params import dag_params
from winback.operators.plan import PlanOperator
from winback.operators.progress import task_failed, task_started, task_succeeded
from winback.operators.publish import PublishOperator
from winback.operators.report import ReportOperator
from winback.operators.score_customers import ListShardsOperator, ScoreCustomersOperator
from winback.operators.start_run import StartRunOperator
from winback.operators.train_profit import TrainProfitOperator

DOC = """
### Who gets which coupon today

Orders and past coupons become features (dbt), the features become forecasts (BG/NBD: who will buy
anyway; Transformer: what a purchase with each coupon brings), the forecasts become a plan
(Dyna-Q: what a coupon does to the weeks after), all customers are scored by it in parts, and the
scores become one decision per customer within the coupon budget. Great Expectations checks the
data between the steps; if a check or a task fails, yesterday's recommendations and Q-table stay.
They stay as well if the new plan looks worse on the log than theirs (the run is `held`; the param
`override_gate` publishes it).

Results: `winback.current_recommendations` in the warehouse, `winback:current` in Redis.
"""

RECOMMENDATIONS = Asset("winback://recommendations", group="winback")
Q_TABLE = Asset("winback://q_table", group="winback")

# Wrong data or settings, a verdict, too little memory stay; a server that is away may come back.
RETRY_BY_ERROR = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception=[DataError, SettingsError, NotFittedError, HeldError, MemoryError],
            action=RetryAction.FAIL,
        ),
        RetryRule(exception=StoreUnavailableError, action=RetryAction.RETRY),
    ]
)

deployment = load_settings()

with DAG(
    "winback_daily",
    description="Decides every day which customer gets which coupon",
    doc_md=DOC,
    schedule="0 5 * * *",  # before the campaign tools start their day
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,  # runs share the feature tables and the budget
    tags=["winback", "marketing", "dbt"],
    params=dag_params(),
    default_args={
        "owner": "winback",
        "retries": deployment.task_retries,
        "retry_delay": timedelta(minutes=2),
        "retry_policy": RETRY_BY_ERROR,
        "execution_timeout": timedelta(hours=deployment.task_timeout_hours),
        "on_execute_callback": task_started,
        "on_success_callback": task_succeeded,
        "on_failure_callback": task_failed,
        "on_retry_callback": task_failed,
    },
) as dag:
    start = StartRunOperator(task_id="start_run")
    started: Any = start.output  # Airflow's XComArg; its type hides that it is indexed by key
    run = {name: started[name] for name in ("as_of", "run_id", "settings")}

    check_sources = CheckDataOperator(task_id="check_sources", suite="sources", **run)
    dbt_features = DbtBuildOperator(task_id="dbt_features", select="tag:features", **run)
    check_features = CheckDataOperator(task_id="check_features", suite="features", **run)
    fit_survival = FitSurvivalOperator(task_id="fit_survival", **run)
    check_scores = CheckDataOperator(task_id="check_scores", suite="scores", **run)
    check_drift = CheckDriftOperator(task_id="check_drift", **run)
    train_profit = TrainProfitOperator(
        task_id="train_profit",
        pool=deployment.training_pool,
        queue=deployment.training_queue,
        **run,
    )
    fit_response = FitResponseOperator(task_id="fit_response", **run)
    plan = PlanOperator(task_id="plan", **run)
    list_shards = ListShardsOperator(task_id="list_shards", **run)
    shards: Any = list_shards.output
    score_customers = ScoreCustomersOperator.partial(
        task_id="score_customers", **run
    ).expand_kwargs(shards)
    allocate_coupons = AllocateCouponsOperator(task_id="allocate_coupons", **run)
    evaluate_policy = EvaluatePolicyOperator(task_id="evaluate_policy", **run)
    check_recommendations = CheckDataOperator(
        task_id="check_recommendations", suite="recommendations", **run
    )
    publish = PublishOperator(
        task_id="publish",
        started_at=started["started_at"],
        metrics={
            "settings": started["settings"],
            "survival": fit_survival.output,
            "drift": check_drift.output,
            "profit": train_profit.output,
            "response": fit_response.output,
            "plan": plan.output,
            "allocation": allocate_coupons.output,
            "evaluation": evaluate_policy.output,
        },
        outlets=[RECOMMENDATIONS, Q_TABLE],
        **run,
    )
    dbt_reports = DbtBuildOperator(task_id="dbt_reports", select="tag:reports", **run)
    report = ReportOperator(task_id="report", **run)
    finish_run = FinishRunOperator(
        task_id="finish_run", started_at=started["started_at"], **run
    ).as_teardown(setups=start)

    chain(
        start,
        check_sources,
        dbt_features,
        check_features,
        fit_survival,
        check_scores,
        check_drift,
        train_profit,
        fit_response,
        plan,
        list_shards,
        score_customers,
        allocate_coupons,
        evaluate_policy,
        check_recommendations,
        publish,
        dbt_reports,
        report,
        finish_run,
    )
