"""One run of one decision date: what every step's function is given."""

from dataclasses import dataclass
from typing import Any

from winback.models.settings import Settings
from winback.operators.artifacts import Artifacts


@dataclass(frozen=True)
class Run:
    """One run of one decision date: all that a step's function needs to know."""

    url: str
    as_of: str
    run_id: str
    settings: Settings

    def __repr__(self) -> str:
        """Leave the URL out: it holds the password."""
        return f"Run(as_of={self.as_of!r}, run_id={self.run_id!r})"

    @property
    def names(self) -> dict[str, Any]:
        """What the steps' SQL may name: the schemas as identifiers, as_of and run_id as values."""
        from psycopg import sql

        settings = self.settings
        return {
            "schema": sql.Identifier(settings.schema_name),
            "work": sql.Identifier(settings.work_schema),
            "staging": sql.Identifier(settings.staging_schema),
            "source": sql.Identifier(settings.source_schema),
            "as_of": self.as_of,
            "run_id": self.run_id,
        }

    @property
    def artifacts(self) -> Artifacts:
        """The run's artifact folder."""
        return Artifacts(self.settings.artifacts_uri, self.as_of, self.run_id)
