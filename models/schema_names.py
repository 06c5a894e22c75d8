"""Names that a Postgres schema may have without quotes: SQL and dbt have them bare."""

SCHEMA_NAME = r"^[a-z_][a-z0-9_]*$"
LONGEST = 63  # bytes; Postgres cuts what is longer, and two schemas become one
OF_POSTGRES = "pg_"  # names that begin so are refused to everybody else

# Postgres 18, appendix C: reserved, and reserved but for functions and types.
_RESERVED = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check
collate collation column concurrently constraint create cross current_catalog current_date
current_role current_schema current_time current_timestamp current_user default deferrable desc
distinct do else end except false fetch for foreign freeze from full grant group having ilike in
initially inner intersect into is isnull join lateral leading left like limit localtime
localtimestamp natural not notnull null offset on only or order outer overlaps placing primary
references returning right select session_user similar some symmetric system_user table tablesample
then to trailing true union unique user using variadic verbose when where window with
"""
RESERVED_WORDS = frozenset(_RESERVED.split())


def refusal(name: str) -> str | None:
    """Why a name of plain letters cannot be a schema's; None where it can."""
    if name in RESERVED_WORDS:
        return f"expected a schema name that is no reserved word of SQL, such as shop_{name}"
    if name.startswith(OF_POSTGRES):
        return f"expected a schema name that does not begin with {OF_POSTGRES}"
    return None
