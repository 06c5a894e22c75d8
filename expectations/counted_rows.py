"""Great Expectations' rule in SQL, asked once: the library's own runs its query twice."""

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from winback.expectations.suites import BROKEN_ROWS

if TYPE_CHECKING:
    from great_expectations.expectations.core.unexpected_rows_expectation import (
        UnexpectedRowsExpectation,
    )


@cache
def counted_rows() -> "type[UnexpectedRowsExpectation]":
    """The library's rule, for a query whose rows say how many they are in ``BROKEN_ROWS``."""
    from great_expectations.expectations.core.unexpected_rows_expectation import (
        UnexpectedRowsExpectation,
    )

    class CountedRowsExpectation(UnexpectedRowsExpectation):
        metric_dependencies: ClassVar[tuple[str, ...]] = ("unexpected_rows_query.table",)

        def _validate(
            self, metrics: dict[str, Any], runtime_configuration: Any = None, *_: Any, **__: Any
        ) -> dict[str, Any]:
            rows = [dict(row) for row in metrics["unexpected_rows_query.table"]]
            counts = [row.pop(BROKEN_ROWS) for row in rows]
            details = {"unexpected_rows": rows}
            result = {"observed_value": counts[0] if counts else 0, "details": details}
            return {"success": not rows, "result": result}

    return CountedRowsExpectation
