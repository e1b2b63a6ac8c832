"""From the words of a command line to values; what does not fit is said in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from workerd.cli.faults import UsageFault
from workerd.cli.options import FOR_EVER
from workerd.cli.terminal import line
from workerd.clock import from_rfc3339
from workerd.config.units import duration
from workerd.job import Status, parse_id


def key_values(words: Iterable[str]) -> dict[str, str]:
    """`key=value` words as texts by key. Raises UsageFault."""
    values: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageFault(f'Expected key=value, got "{line(word)}": write the argument\'s name before it.')
        if key in values:
            raise UsageFault(f'"{line(key)}" is given twice: give every argument once.')
        values[key] = text
    return values


def loose(text: str) -> Any:
    """JSON where it parses as JSON, else the text itself."""
    try:
        return msgspec.json.decode(_utf8(text))
    except (msgspec.DecodeError, RecursionError):
        return text


def json_object(text: str, option: str) -> dict[str, Any]:
    """A JSON object given with `option`. Raises UsageFault."""
    try:
        value = msgspec.json.decode(_utf8(text))
    except msgspec.DecodeError as error:
        raise UsageFault(f"Expected a JSON object after {option}, got broken JSON: {error}.") from None
    except RecursionError:
        raise UsageFault(f"Expected a JSON object after {option}, got nesting without end.") from None
    if not isinstance(value, dict):
        raise UsageFault(f"Expected a JSON object after {option}, such as '{{\"key\": 1}}'.")
    return value


def json_value(text: str, option: str) -> Any:
    """Any JSON value given with `option`. Raises UsageFault."""
    try:
        return msgspec.json.decode(_utf8(text))
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageFault(f"Expected JSON after {option}, got something else: {error}.") from None


def _utf8(text: str) -> bytes:
    # What the shell hands over need not be UTF-8; Python keeps such bytes as lone surrogates.
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageFault(f'Expected UTF-8, got "{line(text)}": set the terminal to UTF-8.') from None


def seconds(text: str | None, option: str) -> float | None:
    """A duration given with `option`, in seconds; None stays None. Raises UsageFault."""
    if text is None:
        return None
    try:
        return duration(text)
    except ValueError as error:
        raise UsageFault(f"{option}: {error}.") from None


def patience(text: str | None) -> float | None:
    """Seconds of `--wait D`; None without a limit. Raises UsageFault."""
    return None if text == FOR_EVER else seconds(text, "--wait")


def moment(text: str | None, option: str) -> int | None:
    """A time given with `option`, as store time; None stays None. Raises UsageFault."""
    if text is None:
        return None
    try:
        return from_rfc3339(text)
    except ValueError as error:
        raise UsageFault(f"{option}: {error}.") from None


def since(text: str | None, now: int) -> int | None:
    """A time, or a duration before `now`, as store time. Raises UsageFault."""
    if text is None:
        return None
    try:
        return now - round(duration(text) * 1_000_000)
    except ValueError:
        return moment(text, "--since")


def status(text: str | None) -> Status | None:
    """A job's state. Raises UsageFault."""
    if text is None:
        return None
    try:
        return Status(text)
    except ValueError:
        known = ", ".join(s.value for s in Status)
        raise UsageFault(f'--status: expected one of {known}, got "{line(text)}".') from None


def identity(text: str) -> bytes:
    """An id. Raises UsageFault."""
    try:
        return parse_id(text)
    except ValueError as error:
        raise UsageFault(f"{error}. The lists (`workerd job list`) show ids.".replace("..", ".")) from None
