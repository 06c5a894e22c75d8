"""Errors, sorted by what the caller may do about them.

::

    WinbackError
    ├── DataError              the data are wrong: stop and tell the analyst
    ├── SettingsError          the command line or a setting is wrong: correct it (exit code 2)
    ├── NotFittedError         a result of an earlier task is missing: run that task
    ├── HeldError              the gate keeps the current policy: decide (exit code 1)
    └── StoreUnavailableError  Postgres, Redis or the artifact store does not answer: retry
"""

from collections.abc import Sequence


class WinbackError(Exception):
    """Base of all errors that winback raises on purpose."""


class DataError(WinbackError):
    """The data break a rule; running again on the same data gives the same error."""


class SettingsError(WinbackError):
    """A setting, parameter or command-line argument is wrong."""


class NotFittedError(WinbackError):
    """A model, artifact or result that an earlier task makes is missing."""


class HeldError(WinbackError):
    """The new policy may not replace the current one; nothing is broken and nothing has changed."""


class StoreUnavailableError(WinbackError):
    """A database, Redis or the artifact store cannot be reached; a retry may succeed."""


def first_rows(rows: Sequence[object], count: int | None = None) -> str:
    """Name the first five offending rows and how many there are: ``a, b, c (3 rows)``."""
    total = len(rows) if count is None else count
    shown = ", ".join(str(row) for row in rows[:5])
    return f"{shown}{', …' if total > 5 else ''} ({total} row{'s' if total != 1 else ''})"
