"""What is said of a wrong value, without telling secrets."""

from __future__ import annotations

import re

from workerd import text as texts
from workerd.errors import InvalidValue

_CREDENTIALS = re.compile(r"(?<=://).*@|(?<=[?&])[^=&]*(?:pass|secret|token|key)[^=&]*=[^&]*", re.I | re.S)


def wrong(expected: str, value: object) -> InvalidValue:
    """The one form of an error about a value."""
    return InvalidValue(f"expected {expected}, got {shown(value)}")


def refuse_reserved(handler: str) -> None:
    """Raises InvalidValue for the handlers that are the daemon's own, whose jobs only it makes.

    One check for every way in: a job of `~webhook` from elsewhere would be signed and delivered as an event.
    """
    if handler.startswith("~"):
        raise InvalidValue('names that start with "~" are reserved')


def shown(value: object) -> str:
    """A value in a message: its kind, cut and escaped, lists and tables unopened, no credentials."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = texts.line(_CREDENTIALS.sub("***@", value[:2000]))
            return f'the text "{text[:60]}{"…" if len(text) > 60 else ""}"'
        case int() | float():
            return f"the number {value}" if abs(value) < 1e15 or value != value else "a huge number"
        case list() | tuple():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"
