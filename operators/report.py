"""stub"""
from typing import Any
from airflow.sdk import Context
from winback.operators.base import WinbackOperator
class ReportOperator(WinbackOperator):
    def execute(self, context: Context) -> dict[str, Any]:
        return {}
