"""Which steps of a benchmark run again: for a changed setting, and for changed code."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from winback.models.errors import SettingsError
from winback.models.settings import Settings, load_settings
from winback.operators.benchmark_product import (
    FEATURES,
    FIRST_STEP,
    PLAN,
    PROFIT,
    RESPONSE,
    STEPS,
    SURVIVAL,
    Place,
    Product,
)
from winback.operators.benchmark_table import RIVAL_CODE, version_of
from winback.operators.dbt_build import SETTING_VARS
from winback.operators.run import Run

ROOT = Path(str(files("winback")))
ORDER = [FEATURES, *STEPS]
FIRST = {name: ORDER.index(FIRST_STEP.get(name, PLAN)) for name in Settings.model_fields}
MODULES = {
    SURVIVAL: ("fit_survival",),
    PROFIT: ("train_profit", "training_process"),
    RESPONSE: ("fit_response", "panel"),
}
# What rivals import without their figures depending on it: types, errors, paths, other samples,
# and defaults of settings that do not shape features.
OTHERS = {
    *("models/errors.py", "models/schema_names.py", "models/settings.py"),
    "models/situations.py",
    *("models/profit_config.py", "models/profit_data.py"),
    *("operators/artifacts.py", "operators/run.py"),
    *("operators/sample_journey.py", "operators/sample_small.py"),
}
RIVALS = (
    *("models.peers", "models.peers_judgement", "models.world_observer"),
    *("operators.benchmark_peers", "operators.benchmark_worlds", "operators.world_source"),
)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"decision_days": 14}, "after the features, .* came decision_days"),
        ({"pesimism": 1}, "no such settings: pesimism"),
    ],
)
def test_a_variant_refuses_what_it_cannot_change(setting, words):
    product = Product(Run("", "2026-01-05", "benchmark", load_settings({})))
    with pytest.raises(SettingsError, match=words):
        product.recommend(setting)


def test_the_environments_settings_are_not_a_benchmarks(monkeypatch):
    """Oracle: the defaults, and what was given; rows know of no other settings."""
    for name, text in {"pessimism": "3", "use_planning": "false", "timezone": "Asia/Tokyo"}.items():
        monkeypatch.setenv(f"WINBACK_{name.upper()}", text)
    assert load_settings().pessimism == 3  # they are read where they should be
    settings = Place("", "shop", "file:///tmp").run("2026-01-05", gamma="0.5").settings
    own = {"as_of": "2026-01-05", "source_schema": "shop_raw", "schema_name": "shop"}
    assert settings == load_settings({**own, "artifacts_uri": "file:///tmp", "gamma": 0.5}, {})


def test_a_place_keeps_its_own_schemas():
    """Whatever was set: a benchmark drops them when it is done."""
    given = {"schema_name": "winback", "source_schema": "raw"}
    settings = Place("", "shop", "file:///tmp").run("2026-01-05", **given).settings
    assert (settings.schema_name, settings.source_schema) == ("shop", "shop_raw")


def test_a_settings_value_is_one_however_it_is_written():
    """As text on the command line, as a number in a form."""
    assert version_of({"gamma": "0.50"}) == version_of({"gamma": 0.5}) != version_of({})
    assert version_of({"gamma": 0.5}) != version_of({"gamma": 0.6})


@pytest.mark.parametrize("step", MODULES)
def test_a_changed_setting_runs_the_first_step_that_reads_it(step):
    """Oracle: the settings that the step's code names."""
    code = "".join((ROOT / "operators" / f"{name}.py").read_text() for name in MODULES[step])
    named = set(re.findall(r"settings\.(\w+)", code)) & set(FIRST)
    assert named
    assert {name for name in named if FIRST[name] > ORDER.index(step)} == set()


def test_settings_that_dbt_reads_shape_the_features():
    assert {name for name in SETTING_VARS if FIRST_STEP.get(name) != FEATURES} == set()
    assert set(FIRST_STEP) <= set(FIRST)


def test_rivals_depend_on_all_code_that_they_use():
    """Oracle: what a fresh Python imports for them."""
    imports = "; ".join(f"import winback.{name}" for name in RIVALS)
    command = [sys.executable, "-c", f"import sys; {imports}; print(*sys.modules)"]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = [name.split(".")[1:] for name in modules if name.startswith("winback.")]
    used = {f"{'/'.join(name)}.py" for name in names if len(name) == 2}
    hashed = {str(path.relative_to(ROOT)) for code in RIVAL_CODE for path in ROOT.glob(code)}
    assert used >= {"models/survival.py", "operators/snapshots.py"}
    assert used - hashed - OTHERS == set()
    assert [code for code in RIVAL_CODE if not list(ROOT.glob(code))] == []
