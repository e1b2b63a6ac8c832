"""What a configuration value may be: each validator converts TOML's value or says what it expected.

Here: numbers, quantities, lists and tables. Texts and addresses have files of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workerd import json_text
from workerd.config.quantities import (
    MAX_DURATION_S,
    MAX_SIZE_BYTES,
    MAX_WINDOW_S,
    duration,
    duration_literal,
    size,
    size_literal,
)
from workerd.config.wrong_value import wrong
from workerd.errors import InvalidValue
from workerd.host import processors
from workerd.rate_limit import Rate


@dataclass(frozen=True)
class Validator:
    """Converts a value from TOML, or raises InvalidValue("expected …, got …").

    `expects`: what it accepts, in words. `unit`: "duration" (converted to seconds), "size" (to bytes) or "".
    TOML's types are kept strictly: `true` is not a number and `1` is not text.
    """

    convert: Callable[[Any], Any]
    expects: str
    unit: str = ""

    def __call__(self, value: Any) -> Any:
        return self.convert(value)


def validator(expects: str, unit: str = "") -> Callable[[Callable[[Any], Any]], Validator]:
    return lambda convert: Validator(convert, expects, unit)


@validator("anything")
def anything(value: Any) -> Any:
    return value


@validator("a table")
def table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong("a table", value)
    return value


@validator("a table of values that JSON can represent")
def json_table(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = table(value)
    json_text.encode_given("", found)
    return found


@validator("true or false")
def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong("true or false", value)
    return value


def integer(low: int, high: int) -> Validator:
    """A whole number between two bounds."""
    expects = f"a whole number from {low} to {high}"

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(expects, value)
        return value

    return Validator(convert, expects)


@validator('a whole number from 1 to 1000, or "auto"')
def workers(value: Any) -> int:
    """A number of worker processes; "auto": one for each processor that this process may use."""
    if value == "auto":
        return processors()
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
        raise wrong('a whole number from 1 to 1000, or "auto"', value)
    return value


def number(low: float, high: float) -> Validator:
    """A number between two bounds."""
    expects = f"a number from {low:g} to {high:g}"

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise wrong(expects, value)
        return float(value)

    return Validator(convert, expects)


def duration_between(low: float, high: float = MAX_DURATION_S) -> Validator:
    """Seconds between two bounds."""
    expects = f'a duration from "{duration_literal(low)}" to "{duration_literal(high)}"'

    def convert(value: Any) -> float:
        seconds = duration(value)
        if not low <= seconds <= high:
            raise wrong(expects, value)
        return seconds

    return Validator(convert, expects, "duration")


@validator('a duration or ""', "duration")
def duration_or_none(value: Any) -> float | None:
    """Seconds; "" is None."""
    if value == "" and isinstance(value, str):
        return None
    try:
        return duration(value)
    except InvalidValue as error:
        raise InvalidValue(str(error).replace(", got", ' or "", got', 1)) from None


@validator('a duration from "1s" to "366d", or ""', "duration")
def window_or_none(value: Any) -> float | None:
    """Seconds; "" is None."""
    seconds: float | None = duration_or_none(value)
    if seconds is not None and not 1 <= seconds <= MAX_WINDOW_S:
        raise wrong(window_or_none.expects, value)
    return seconds


def size_between(low: int = 0, high: int = MAX_SIZE_BYTES, *, zero: bool = False) -> Validator:
    """Bytes between two bounds; with `zero` also 0."""
    expects = f'{"0 or " if zero else ""}a size from "{size_literal(low)}" to "{size_literal(high)}"'

    def convert(value: Any) -> int:
        count = size(value)
        if not (low <= count <= high or (zero and not count)):
            raise wrong(expects, value)
        return count

    return Validator(convert, expects, "size")


def choice(*names: str) -> Validator:
    """One of these words."""
    expects = " or ".join(f'"{name}"' for name in names)

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise wrong(expects, value)
        return value

    return Validator(convert, expects)


def list_of(item: Callable[[Any], Any], what: str) -> Validator:
    """A tuple of items, each converted by `item`."""
    expects = f"a list of {what}"

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise wrong(expects, value)
        return tuple(item(element) for element in value)

    return Validator(convert, expects)


@validator("a table of texts")
def texts_by_name(value: Any) -> dict[str, str]:
    """A table of texts, such as labels and environment variables; no message shows its values."""
    if not isinstance(value, dict):
        raise wrong("a table of texts", value)
    for key, item in value.items():
        if not key or "\0" in key or "=" in key:
            raise InvalidValue(f"expected names without =, got {key[:60]!a}")
        if not isinstance(item, str) or "\0" in item:
            raise InvalidValue(f"expected text for each name, got something else for {key[:60]!a}")
    return dict(value)


_LOG_FIELDS = {
    "time", "level", "event", "process", "exception", "error", "repeated", "line", "job", "attempt",
}  # fmt: skip
_METRIC_LABELS = {
    "handler", "pool", "workflow", "schedule", "limit", "outcome", "reason", "code", "state", "status",
    "success", "result", "process", "le", "quantile",
}  # fmt: skip
RESERVED_LABELS = frozenset(_LOG_FIELDS | _METRIC_LABELS)
"""Names of fields of the log and of labels of workerd's metrics."""


@validator("a table of texts, with label names as Prometheus allows them")
def labels(value: Any) -> dict[str, str]:
    named: dict[str, str] = texts_by_name(value)
    for key in named:
        if not re.fullmatch(r"(?!__)[A-Za-z_][A-Za-z0-9_]*", key):
            raise InvalidValue(f"expected label names of letters, digits and _, got {key[:60]!a}")
        if key in RESERVED_LABELS:
            raise InvalidValue(
                f'expected label names that workerd does not use itself, got "{key}"; choose another one, '
                f'such as "site_{key}"'
            )
    return named


MAX_RATE_COUNT = 1_000_000
MAX_RATE_PERIOD_S = 31 * 86400.0
_RATE = re.compile(r"\s*([0-9]{1,9})\s*/\s*(\S.*?)\s*", re.ASCII)


@validator('a rate such as "100/1m" (1 to 1000000 per 1ms to 31d), or ""')
def rate_or_none(value: Any) -> Rate | None:
    """Starts per time, with as many at once; "" is None."""
    if value == "" and isinstance(value, str):
        return None
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 1 <= int(found[1]) <= MAX_RATE_COUNT:
        raise wrong(rate_or_none.expects, value)
    try:
        seconds = duration(found[2] if found[2][0].isdigit() else f"1{found[2]}")
    except InvalidValue:
        raise wrong(rate_or_none.expects, value) from None
    if not 0.001 <= seconds <= MAX_RATE_PERIOD_S:
        raise wrong(rate_or_none.expects, value)
    return Rate(int(found[1]), round(seconds * 1_000_000), int(found[1]))


def count_or_none(low: int, high: int) -> Validator:
    """A whole number between two bounds; "" is None."""
    bounded = integer(low, high)
    expects = f'{bounded.expects}, or ""'

    def convert(value: Any) -> int | None:
        if value == "" and isinstance(value, str):
            return None
        try:
            return int(bounded(value))
        except InvalidValue:
            raise wrong(expects, value) from None

    return Validator(convert, expects)


weight = integer(1, 100)


def or_empty(validator: Validator) -> Validator:
    """What `validator` accepts, or ""."""

    def convert(value: Any) -> Any:
        return "" if isinstance(value, str) and not value else validator(value)

    return Validator(convert, f'{validator.expects}, or ""')
