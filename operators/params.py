"""The settings as an Airflow form: one Param per field, with its type, limits and sentence."""

from typing import Any

from airflow.sdk import Param

from winback.models.settings import DEPLOYMENT_SETTINGS, Settings, load_settings


def dag_params() -> dict[str, Param]:
    """Params of ``winback_daily``; their defaults are the settings of this environment."""
    schema = Settings.model_json_schema()["properties"]
    defaults = load_settings().model_dump(mode="json")
    return {
        name: Param(defaults[name], title=name, **_form(schema[name]))
        for name in Settings.model_fields
        if name not in DEPLOYMENT_SETTINGS
    }


def _form(field: dict[str, Any]) -> dict[str, Any]:
    # Airflow's form reads a list of types, not JSON schema's anyOf.
    described = {"description_md": field["description"]}
    options = field.get("anyOf")
    if options is None:
        limits = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "maxLength")
        kept = ("type", "enum", "pattern", *limits)
        objects = {"items": {"type": "object"}} if "$ref" in field.get("items", {}) else {}
        return {**described, **{name: field[name] for name in kept if name in field}, **objects}
    given = next(option for option in options if option["type"] != "null")
    return {**described, **given, "type": ["null", given["type"]]}
