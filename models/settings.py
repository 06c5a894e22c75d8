"""Every tunable of a run, once: DAG params, command options and the docs come from here."""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from winback.models.errors import SettingsError, first_rows
from winback.models.profit_config import ProfitConfig
from winback.models.schema_names import LONGEST, SCHEMA_NAME, refusal

ENVIRONMENT_PREFIX = "WINBACK_"
WORK, STAGING = "_work", "_staging"  # behind schema_name: the schemas beside it

# Read where the DAG is parsed, so a run cannot change them: set WINBACK_<NAME> instead.
DEPLOYMENT_SETTINGS = (
    *("schema_name", "task_retries", "task_timeout_hours"),
    *("training_pool", "training_queue"),
)

PROFIT = ProfitConfig()  # its defaults, with their reasons, are these settings' defaults

Share = Annotated[float, Field(ge=0, le=1)]

# Right-open bin edges of the state, in the feature's own unit; category is used as it is.
DEFAULT_STATE_BINS: dict[str, tuple[float, ...]] = {
    "days_since_last_purchase": (7, 14, 28, 56),  # this week, last week, a month, two, longer
    "purchases_last_30d": (1, 2, 4, 8),  # none, one, some, weekly, more than weekly
    "avg_order_value": (10, 25, 50, 100),  # small change to a full trolley, currency
    "remaining_budget_pct": (0.25, 0.5, 0.75),  # quarters of the period's money
    "coupons_last_30d": (1, 2),  # promotion fatigue: none, one, more
    "p_alive": (0.1, 0.5, 0.9),  # gone, probably gone, probably here, here
}


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LimitSetting(BaseModel):
    """A limit of each run, as an analyst writes it; what is left out includes everybody.

    Example: at least 200 of coupon money to customers whose last purchase is 28 to 55 days ago,
    and at most 500 customers a run with the coupon c10::

        [{"name": "slipping away", "segment": {"days_since_last_purchase": [28, 56]}, "floor": 200},
         {"name": "ten off", "coupons": ["c10"], "unit": "contacts", "ceiling": 500}]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="What people call it; unique")
    coupons: tuple[str, ...] = Field((), description="Coupons that count; empty: all")
    categories: tuple[str, ...] = Field(
        (), description="Customers by the category of their last purchase; empty: all"
    )
    segment: dict[str, tuple[float | None, float | None]] = Field(
        {}, description="Customers by a state feature, from and below; null: open"
    )
    unit: Literal["spend", "contacts"] = Field(
        "spend", description="Expected coupon money, or customers with a coupon"
    )
    floor: Amount = Field(0.0, description="At least this much, in the unit")
    ceiling: Amount | None = Field(None, description="At most this much; empty: no ceiling")

    @model_validator(mode="after")
    def _can_bind(self) -> "LimitSetting":
        if self.name == "budget":
            raise ValueError("expected another name than budget, which is a limit of every run")
        if self.floor == 0 and self.ceiling is None:
            raise ValueError(f"expected a floor or a ceiling in the limit {self.name}")
        if self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(
                f"expected a floor of at most the ceiling in the limit {self.name}, came "
                f"{self.floor:g} and {self.ceiling:g}"
            )
        for feature, (low, high) in self.segment.items():
            if low is not None and high is not None and low >= high:
                raise ValueError(
                    f"expected [from, below] of {feature} to rise in the limit {self.name}, "
                    f"came [{low:g}, {high:g}]"
                )
        return self


class Settings(BaseModel):
    """What a run may be told. Unknown names and impossible values are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        defer_build=True,  # the validator is made at the first use: --help needs none
    )

    # -- this run
    as_of: date | None = Field(None, description="Decision date; empty: the data interval's end")
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="Coupon money for this run (currency); empty: from the budgets table"
    )
    publish: bool = Field(True, description="Off: a dry run, everything is computed and checked")

    # -- warehouse and artifacts
    source_schema: str = Field(
        "raw", pattern=SCHEMA_NAME, max_length=LONGEST, description="Schema of the source tables"
    )
    schema_name: str = Field(
        "winback",
        pattern=SCHEMA_NAME,
        max_length=LONGEST - len(STAGING),
        description="Schema of winback's tables",
    )
    artifacts_uri: str = Field(
        "~/.winback/artifacts",  # stays: the next run is compared with the model of the last
        description="Where weights, parameters and reports go; all workers must reach it",
    )
    timezone: str = Field("UTC", description="Days begin at midnight in this timezone")
    batch_rows: int = Field(50_000, gt=0, description="Rows per batch between warehouse and models")

    currency: str = Field("", max_length=8, description="Written behind amounts, such as EUR")

    # -- the decision
    decision_days: int = Field(7, ge=1, le=30, description="Days that one decision lasts")
    contact_gap_days: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Days before a customer may get another coupon; empty: decision_days"
    )
    max_contacts: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Coupons that a customer may get in max_contacts_days; empty: any number"
    )
    max_contacts_days: int = Field(
        28, ge=1, description="Days over which max_contacts counts; four weeks, each weekday alike"
    )
    limits: tuple[LimitSetting, ...] = Field(
        (), description="Further limits of each run, per coupon, category or segment (JSON)"
    )
    cadence_days: int = Field(
        1, ge=1, description="Days between runs, which share a period's money"
    )
    pacing: bool = Field(
        False, description="On: a period's money counts what offers already out will still cost"
    )
    default_margin_rate: Share = Field(
        0.3, description="Margin where an order has none (of revenue)"
    )
    allowed_coupons: tuple[str, ...] = Field((), description="Coupons to choose from; empty: all")
    decisions_are_offers: bool = Field(
        False, description="Count published decisions as carried-out offers"
    )
    holdout_share: Share = Field(
        0.1, description="Customers that never get coupons, as a yardstick"
    )
    holdout_salt: str = Field("winback", description="Changing it draws a new holdout")
    exploration_rate: Share = Field(
        0.1,
        description="Customers whose coupon is drawn by chance; with nothing known, up to half are",
    )
    exploration_budget_share: Share = Field(
        0.2, description="At most this share of the budget goes to exploration"
    )
    propensity_floor: Share = Field(0.01, description="Smallest chance of an eligible coupon")

    # -- survival
    survival_engine: Literal["winback", "lifetimes"] = Field(
        "winback", description="Which BG/NBD fitter runs"
    )
    survival_penalizer: float = Field(
        0.0, ge=0, description="Ridge on the parameters, as in lifetimes; 0: none"
    )

    # -- profit model
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model trains")
    task_retries: int = Field(2, ge=0, description="Tries after a task's first failure")
    task_timeout_hours: float = Field(
        6.0, gt=0, allow_inf_nan=False, description="Time after which a task is stopped as failed"
    )
    memory_limit_gb: Annotated[float, Field(ge=2)] | None = Field(
        6.0, description="Memory that a task's process may ask for (10⁹ bytes); empty: no limit"
    )
    training_pool: str = Field("default_pool", description="Airflow pool of the training task")
    training_queue: str = Field("default", description="Airflow queue of the training task")
    max_training_rows: int = Field(
        PROFIT.max_rows, gt=0, description="Snapshots to train on, a random sample beyond"
    )
    epochs: int = Field(
        PROFIT.max_epochs, gt=0, description="Passes over the training rows, at most"
    )
    patience: int = Field(
        PROFIT.patience, gt=0, description="Epochs without progress before training stops"
    )
    batch_size: int = Field(PROFIT.batch_rows, gt=0, description="Snapshots per training step")
    learning_rate: float = Field(PROFIT.learning_rate, gt=0, description="Step size of AdamW")
    validation_share: float = Field(
        PROFIT.validation_share, gt=0, lt=1, description="Latest dates, kept for validation"
    )
    seed: int = Field(7, description="Seed of every random number that is not a customer's draw")

    # -- response and planner
    response_classes: int | None = Field(
        None, ge=1, le=32, description="Hidden classes, one model; empty: several models joined"
    )
    max_response_customers: int = Field(
        40_000, gt=0, description="Customers that the classes are learned from, at most"
    )
    shard_customers: int = Field(
        100_000, gt=0, description="Customers scored in one task: about 1.3 GB of memory"
    )
    state_bins: dict[str, tuple[float, ...]] = Field(
        DEFAULT_STATE_BINS, description="Bin edges of the state features"
    )
    gamma: float = Field(0.95, ge=0, lt=1, description="Discount per decision period")
    planning_updates: int = Field(20, ge=0, description="Planning updates per logged decision (K)")
    learning_rate_q: float = Field(0.3, gt=0, le=1, description="First step size of Dyna-Q (alpha)")
    epsilon_start: Share = Field(0.30, description="Exploration of the planner at its start")
    epsilon_end: Share = Field(0.05, description="Exploration of the planner at its end")
    pessimism: float = Field(
        0.5, ge=0, description="Standard errors taken off what a coupon seems to bring"
    )
    min_visits: int = Field(
        30, ge=0, description="Decisions needed before a coupon may be chosen in a state"
    )

    # -- parts that can be left out, to see what they earn
    use_survival: bool = Field(True, description="BG/NBD's P(purchase) enters the profit model")
    use_transformer: bool = Field(True, description="The profit model's forecast enters decisions")
    use_planning: bool = Field(True, description="What follows after the window counts")
    use_long_run_price: bool = Field(True, description="Plans pay for the coupons to come")

    # -- proof
    evaluation_periods: int = Field(
        12, ge=1, description="Latest decision periods of the log that policies are valued on"
    )
    gate_tolerance: float = Field(
        0.03,
        ge=0,
        allow_inf_nan=False,
        description="Loss against the current policy that is accepted (of a window's profit)",
    )
    override_gate: bool = Field(
        False, description="On: publish whatever the gate says; recorded with the run"
    )

    # -- serving
    keep_versions_days: int = Field(14, ge=1, description="Days before an old Q-table expires")

    @field_validator("source_schema", "schema_name")
    @classmethod
    def _no_word_of_sql(cls, value: str) -> str:
        why_not = refusal(value)
        if why_not:
            raise ValueError(why_not)
        return value

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("expected an IANA timezone such as Europe/Berlin") from error
        return value

    @field_validator("state_bins")
    @classmethod
    def _rising_edges(cls, bins: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        unknown = sorted(set(bins) - set(DEFAULT_STATE_BINS))
        if unknown:
            raise ValueError(
                f"no such state feature: {unknown}; known: {sorted(DEFAULT_STATE_BINS)}"
            )
        for name, edges in bins.items():
            if not edges or list(edges) != sorted(set(edges)):
                raise ValueError(f"expected rising bin edges for {name}, came {edges}")
        # one order of the parts of a state key: a JSON store on the way may have sorted the names
        return {name: bins[name] for name in DEFAULT_STATE_BINS if name in bins}

    @model_validator(mode="after")
    def _known_limits(self) -> "Settings":
        names = [limit.name for limit in self.limits]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"expected limits of different names, came {repeated} repeatedly")
        for limit in self.limits:
            unknown = sorted(set(limit.segment) - set(self.state_bins))
            if unknown:
                raise ValueError(
                    f"no such state feature in the limit {limit.name}: {unknown}; known: "
                    f"{sorted(self.state_bins)}"
                )
        return self

    @property
    def gap_days(self) -> int:
        """Days before a customer may get another coupon."""
        return self.decision_days if self.contact_gap_days is None else self.contact_gap_days

    @property
    def work_schema(self) -> str:
        """Schema that holds a run's results until they are published."""
        return f"{self.schema_name}{WORK}"

    @property
    def staging_schema(self) -> str:
        """Schema of the dbt staging and intermediate models."""
        return f"{self.schema_name}{STAGING}"

    @property
    def config_hash(self) -> str:
        """Short hash of everything that shapes a decision: not when, where and how it runs."""
        circumstances = {
            "as_of",
            "publish",
            "artifacts_uri",
            "batch_rows",
            "shard_customers",
            "device",
            "memory_limit_gb",
        }
        circumstances |= {"keep_versions_days", "override_gate", *DEPLOYMENT_SETTINGS}
        text = json.dumps(self.model_dump(mode="json", exclude=circumstances), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_settings(
    values: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Build settings from ``WINBACK_<NAME>`` variables, overridden by ``values``.

    Raises:
        SettingsError: a name is unknown or a value impossible; the message lists each one.
    """
    given = {**_from_environment(os.environ if environment is None else environment)}
    given.update(values or {})
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise SettingsError(_describe(error)) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        text = environment.get(f"{ENVIRONMENT_PREFIX}{name.upper()}")
        if text is not None and text != "":
            given[name] = parse_text(field.annotation, text)
    return given


def parse_text(annotation: Any, text: str) -> Any:
    """Read a value written as text: lists and maps as JSON (or a,b,c), the rest by pydantic."""
    lists = (tuple[str, ...], tuple[LimitSetting, ...])
    container = annotation in lists or "dict" in str(annotation)
    if not container:
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return tuple(part.strip() for part in text.split(",") if part.strip())


def _describe(error: ValidationError) -> str:
    problems = [
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        f" (came {problem['input']!r})"
        for problem in error.errors()
    ]
    known = ", ".join(Settings.model_fields)
    return f"settings are wrong: {first_rows(problems)}. Known settings: {known}"
