"""One class of settings: what it refuses and how, where values come from, what it is hashed to."""

import json
from datetime import date

import psycopg
import pytest

from winback.models.errors import SettingsError
from winback.models.schema_names import RESERVED_WORDS
from winback.models.settings import DEPLOYMENT_SETTINGS, Settings, load_settings
from winback.models.states import StateSpace

EMPTY: dict[str, str] = {}

WRONG = [  # values, and what the message says about them
    ({"budget": -1}, "budget: .*greater than or equal to 0.*came -1"),
    ({"budget": float("nan")}, "budget: .*nan"),
    ({"budget": float("inf")}, "budget: .*finite"),
    ({"as_of": "yesterday"}, "as_of: .*date.*came 'yesterday'"),
    ({"decision_days": 0}, "decision_days: .*came 0"),
    ({"holdout_share": 1.5}, "holdout_share: .*came 1.5"),
    ({"gamma": 1}, "gamma: .*less than 1.*came 1"),
    ({"timezone": "Mars/Olympus"}, "timezone: .*IANA timezone such as Europe/Berlin"),
    ({"timezone": "../../etc/passwd"}, "timezone: .*IANA timezone"),
    ({"source_schema": "raw; drop table x"}, "source_schema: .*came 'raw; drop table x'"),
    ({"source_schema": "Shop"}, "source_schema: .*came 'Shop'"),
    ({"schema_name": ""}, "schema_name: .*came ''"),
    ({"schema_name": "null"}, "schema_name: .*such as shop_null.*came 'null'"),
    ({"source_schema": "order"}, "source_schema: .*reserved word of SQL.*came 'order'"),
    ({"schema_name": "pg_shop"}, "schema_name: .*not begin with pg_.*came 'pg_shop'"),
    ({"schema_name": "s" * 56}, "schema_name: .*at most 55 characters"),
    ({"survival_engine": "magic"}, "survival_engine: .*'winback' or 'lifetimes'"),
    ({"state_bins": {"avg_order_value": [5, 1]}}, "state_bins: .*rising bin edges"),
    ({"state_bins": {"shoe_size": [40]}}, "state_bins: .*no such state feature"),
    ({"buget": 5}, "buget: .*Known settings: as_of, budget"),
]


@pytest.mark.parametrize(("values", "words"), WRONG, ids=[str(values) for values, _ in WRONG])
def test_impossible_values_are_refused_in_words(values, words):
    with pytest.raises(SettingsError, match=words):
        load_settings(values, EMPTY)


def test_the_reserved_words_are_those_of_the_server(postgres_url):
    """The server's own list: R cannot name a schema, T only functions and types."""
    query = "select word from pg_get_keywords() where catcode in ('R', 'T')"
    with psycopg.connect(postgres_url) as connection:
        assert {word for (word,) in connection.execute(query)} == RESERVED_WORDS


@pytest.mark.parametrize("name", ["nulls", "_", "s" * 55])
def test_a_schema_that_is_not_refused_can_be_made(postgres_url, name):
    settings = load_settings({"schema_name": name}, EMPTY)
    names = (settings.schema_name, settings.work_schema, settings.staging_schema)
    with psycopg.connect(postgres_url) as connection:
        for one in names:
            connection.execute(f"create schema {one}")
        query = "select count(*) from pg_namespace where nspname = any(%s)"
        assert connection.execute(query, [list(names)]).fetchone() == (3,)
        connection.rollback()


def test_all_that_is_wrong_is_listed_at_once():
    with pytest.raises(SettingsError) as failure:
        load_settings({"budget": -1, "gamma": 2, "epochs": 0}, EMPTY)
    for name in ("budget", "gamma", "epochs", "(3 rows)"):
        assert name in str(failure.value)


def test_the_environment_sets_defaults_and_a_run_overrides_them():
    environment = {"WINBACK_GAMMA": "0.5", "WINBACK_EPOCHS": "3", "OTHER_EPOCHS": "9"}
    settings = load_settings({"epochs": 4}, environment)
    assert (settings.gamma, settings.epochs) == (0.5, 4)
    assert settings.patience == Settings().patience


@pytest.mark.parametrize("text", ['["a", "b"]', "a,b", " a , b ,"])
def test_a_list_may_be_written_as_json_or_with_commas(text):
    environment = {"WINBACK_ALLOWED_COUPONS": text}
    assert load_settings({}, environment).allowed_coupons == ("a", "b")


def test_state_bins_from_the_environment_are_json():
    environment = {"WINBACK_STATE_BINS": '{"avg_order_value": [10, 20]}'}
    assert load_settings({}, environment).state_bins == {"avg_order_value": (10, 20)}


def test_the_order_of_the_bins_does_not_depend_on_how_they_travelled():
    """It is the order of the parts of a state key; Postgres' jsonb sorts the names."""
    settings = load_settings({}, EMPTY)
    text = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
    assert list(load_settings(json.loads(text), EMPTY).state_bins) == list(settings.state_bins)


def test_an_empty_variable_is_no_value():
    assert load_settings({}, {"WINBACK_BUDGET": ""}).budget is None


def test_settings_survive_the_way_through_json():
    """Tasks hand them on as JSON."""
    settings = load_settings({"as_of": date(2024, 7, 29), "budget": 10, "allowed_coupons": ["a"]})
    assert load_settings(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


@pytest.mark.parametrize(
    "change", [{"as_of": "2024-01-01"}, {"artifacts_uri": "s3://b"}, {"task_retries": 0}]
)
def test_when_where_and_how_a_run_runs_leaves_the_hash_alone(change):
    assert load_settings(change, EMPTY).config_hash == load_settings({}, EMPTY).config_hash


@pytest.mark.parametrize("change", [{"gamma": 0.9}, {"seed": 8}, {"holdout_salt": "x"}])
def test_what_shapes_a_decision_changes_the_hash(change):
    assert load_settings(change, EMPTY).config_hash != load_settings({}, EMPTY).config_hash


def test_the_gap_between_contacts_is_the_decision_unless_it_is_given():
    assert load_settings({"decision_days": 14}, EMPTY).gap_days == 14
    assert load_settings({"contact_gap_days": 0}, EMPTY).gap_days == 0


def test_every_setting_is_described_and_has_a_default():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name
    assert set(DEPLOYMENT_SETTINGS) < set(Settings.model_fields)


def test_the_default_bins_make_a_state_space():
    assert StateSpace(load_settings({}, EMPTY).state_bins).bins
