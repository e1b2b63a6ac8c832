"""Types of columns and ends of tables, as every migration writes them."""

from __future__ import annotations

# A client's session may have any time zone, so the defaults name UTC themselves.
NOW = "(UTC_TIMESTAMP(6))"
TABLE = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"

_SECOND = "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]"
LITE_NOW = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"
INT32 = "-2147483648"


# SQLite takes any value in any column, so each checks what MySQL's types would.
def lite_time(column: str, rest: str = "") -> str:
    forms = f"{column} GLOB '{_SECOND}' OR ({column} GLOB '{_SECOND}.[0-9]*' AND length({column}) <= 26)"
    return f"{column} TEXT {rest} CHECK ({column} IS NULL OR (typeof({column}) = 'text' AND ({forms})))"


def lite_name(column: str, rest: str = "") -> str:
    valid = f"typeof({column}) = 'text' AND length({column}) <= 191"
    return f"{column} TEXT {rest} CHECK ({column} IS NULL OR ({valid}))"


def lite_text(column: str, rest: str = "") -> str:
    return f"{column} TEXT {rest} CHECK ({column} IS NULL OR typeof({column}) = 'text')"


def lite_id(column: str, rest: str = "") -> str:
    valid = f"typeof({column}) = 'blob' AND length({column}) = 16"
    return f"{column} BLOB {rest} CHECK ({column} IS NULL OR ({valid}))"


def lite_count(column: str, rest: str = "", least: str = "0") -> str:
    valid = f"typeof({column}) = 'integer' AND {column} >= {least}"
    return f"{column} INTEGER {rest} CHECK ({column} IS NULL OR ({valid}))"


def lite_one_of(column: str, values: str, rest: str = "") -> str:
    return f"{column} TEXT {rest} CHECK ({column} IS NULL OR {column} IN ({values}))"
