"""All benchmarks by name, in the order in which they run."""

from winback.operators.bench_allocation import ALLOCATION_STEPS
from winback.operators.bench_daily import DAILY_STEPS
from winback.operators.bench_features import FEATURES_STEPS
from winback.operators.bench_planner import PLANNER_STEPS
from winback.operators.bench_profit import PROFIT_STEPS
from winback.operators.bench_rows import ROWS_STEPS
from winback.operators.bench_serving import SERVING_STEPS
from winback.operators.bench_survival import SURVIVAL_STEPS

_GROUPS = (
    SURVIVAL_STEPS,
    PLANNER_STEPS,
    PROFIT_STEPS,
    ALLOCATION_STEPS,
    ROWS_STEPS,
    SERVING_STEPS,
    FEATURES_STEPS,
    DAILY_STEPS,
)
STEPS = {step.name: step for group in _GROUPS for step in group}
