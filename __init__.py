"""winback: which customer gets which coupon, every day, inside your warehouse."""

from typing import Any

__version__ = "0.1.0"


def provider_info() -> dict[str, Any]:
    """Describe the package to Airflow (entry point ``apache_airflow_provider``)."""
    return {
        "package-name": "winback",
        "name": "winback",
        "description": "Daily coupon decisions: dbt features, BG/NBD, Transformer, Dyna-Q, budget.",
        "versions": [__version__],
    }
