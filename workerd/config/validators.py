"""What a configuration value may be: each validator converts TOML's value or says what it expected."""

from __future__ import annotations

import ipaddress
import math
import re
import urllib.parse
import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cronsim import CronSim, CronSimError

DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

LONGEST = 36500 * 86400.0
"""Seconds; a duration beyond it would leave what the store can date."""
LARGEST = 1 << 50
"""Bytes; beyond it a size is a slip of the pen."""

_QUANTITY = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)\s*", re.ASCII)
_DURATION = 'a duration such as "250ms", "30s", "5m", "2h", "7d" or a number of seconds'
_SIZE = 'a size such as "64KiB", "512MiB", "1GiB" or a number of bytes'


def duration(value: object) -> float:
    """Seconds, from text with a unit or a plain number; ValueError says what was expected and got."""
    seconds = _quantity(value, DURATIONS, "s", _DURATION)
    if seconds > LONGEST:
        raise wrong('a duration of at most "36500d"', value)
    return seconds


def size(value: object) -> int:
    """Bytes, from text with a unit or a whole number; ValueError says what was expected and got."""
    count = _quantity(value, SIZES, "B", _SIZE)
    if count > LARGEST:
        raise wrong('a size of at most "1024TiB"', value)
    if count != int(count):
        raise wrong("a whole number of bytes", value)
    return int(count)


def _quantity(value: object, units: dict[str, float] | dict[str, int], plain: str, expected: str) -> float:
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value)
        unit = (found[2] or plain) if found else ""
        if not found or unit not in units:
            raise wrong(expected, value)
        return float(found[1]) * units[unit]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(expected, value)
    if not 0 <= value < math.inf:
        raise wrong(expected, value)
    # An int beyond a float's range must not become an OverflowError.
    return float(min(value, 1 << 62))


def duration_text(seconds: float) -> str:
    """The shortest way to write a duration: `2h`, `90s`, `250ms`."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / DURATIONS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:.10g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:.10g}ms"


def size_text(count: int) -> str:
    """The shortest exact way to write a size: `4MiB`, `1000B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % SIZES[unit] == 0:
            return f"{count // SIZES[unit]}{unit}"
    return f"{count}B"


def wrong(expected: str, value: object) -> ValueError:
    """The one form of complaint about a value."""
    return ValueError(f"expected {expected}, got {shown(value)}")


_CREDENTIALS = re.compile(r"(?<=://).*@|(?<=[?&])[^=&]*(?:pass|secret|token|key)[^=&]*=[^&]*", re.I | re.S)


def printable(text: str) -> str:
    """Text without control characters and terminal escapes; those are written as `\\x1b`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value in a message: its kind, cut and escaped, lists and tables unopened, no credentials."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = printable(_CREDENTIALS.sub("***@", value[:2000]))
            return f'the text "{text[:60]}{"…" if len(text) > 60 else ""}"'
        case int() | float():
            return f"the number {value}" if abs(value) < 1e15 or value != value else "a huge number"
        case list() | tuple():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"


# What a key may hold: each kind turns TOML's value into ours, or says what it expected.
#
# TOML's types are kept strictly: `true` is no number and `1` is no text.
#

Kind = Callable[[Any], Any]
"""Converts a value; raises ValueError("expected …, got …")."""

NAME_LIMIT = 191
"""Characters of a name; the same as `workerd.job.NAME_LIMIT`, what an index holds."""

_IDENTIFIER = r"[^\W\d]\w*"
_DOTTED = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*")
_REFERENCE = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}(\.{_IDENTIFIER})*")


def text(value: Any) -> str:
    """Any text without NUL."""
    if not isinstance(value, str) or "\0" in value:
        raise wrong("text", value)
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong("true or false", value)
    return value


def integer(low: int, high: int) -> Kind:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(f"a whole number from {low} to {high}", value)
        return value

    return convert


def number(low: float, high: float) -> Kind:
    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise wrong(f"a number from {low:g} to {high:g}", value)
        return float(value)

    return convert


def duration_value(low: float, high: float = LONGEST) -> Kind:
    """Seconds between two bounds."""

    def convert(value: Any) -> float:
        seconds = duration(value)
        if not low <= seconds <= high:
            raise wrong(f'a duration from "{duration_text(low)}" to "{duration_text(high)}"', value)
        return seconds

    return convert


def duration_or_none(value: Any) -> float | None:
    """Seconds; "" is None."""
    if value == "" and isinstance(value, str):
        return None
    try:
        return duration(value)
    except ValueError as error:
        raise ValueError(str(error).replace(", got", ' or "", got', 1)) from None


def size_value(low: int = 0, high: int = LARGEST, zero: bool = False) -> Kind:
    """Bytes between two bounds; with `zero` also 0."""

    def convert(value: Any) -> int:
        count = size(value)
        if not (low <= count <= high or (zero and not count)):
            also = "0 or " if zero else ""
            raise wrong(f'{also}a size from "{size_text(low)}" to "{size_text(high)}"', value)
        return count

    return convert


def choice(*names: str) -> Kind:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise wrong(" or ".join(f'"{n}"' for n in names), value)
        return value

    return convert


def list_of(kind: Kind, what: str) -> Kind:
    """A tuple of items, each of that kind."""

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise wrong(f"a list of {what}", value)
        return tuple(kind(item) for item in value)

    return convert


def texts_by_name(value: Any) -> dict[str, str]:
    """A table of texts, such as labels and environments; no message shows what is in it."""
    if not isinstance(value, dict):
        raise wrong("a table of texts", value)
    for name, item in value.items():
        if not name or "\0" in name or "=" in name:
            raise ValueError(f"expected names without =, got {name[:60]!a}")
        if not isinstance(item, str) or "\0" in item:
            raise ValueError(f"expected text for each name, got something else for {name[:60]!a}")
    return dict(value)


def labels(value: Any) -> dict[str, str]:
    """Label names as Prometheus allows them."""
    table = texts_by_name(value)
    for name in table:
        if not re.fullmatch(r"(?!__)[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"expected label names of letters, digits and _, got {name[:60]!a}")
    return table


def name(value: Any) -> str:
    """What rows, logs and titles call something: no control characters, at most 191 letters."""
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LIMIT or not value.isprintable():
        raise wrong(f"a name of 1 to {NAME_LIMIT} printable characters", value)
    return value


def name_or_empty(value: Any) -> str:
    return "" if isinstance(value, str) and not value else name(value)


def path(value: Any) -> Path:
    """A path, made absolute, because a daemon leaves the folder that it was started in."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise wrong("a path", value)
    return Path(value).absolute()


def path_text(value: Any) -> str:
    return str(path(value))


def path_or_empty(value: Any) -> str:
    return "" if isinstance(value, str) and not value else path_text(value)


def class_name(value: Any) -> str:
    """A class by builtin name or dotted path; whether it exists is seen where the handler is loaded."""
    if not isinstance(value, str) or not _DOTTED.fullmatch(value):
        raise wrong('a class such as "ValueError" or "package.module.Class"', value)
    return value


def reference(value: Any) -> str:
    """`module:attribute`."""
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise wrong('"module:attribute" such as "shop.images:thumbnail"', value)
    return value


def reference_or_empty(value: Any) -> str:
    return "" if isinstance(value, str) and not value else reference(value)


def cron(value: Any) -> str:
    """A cron expression of five or six fields that fires at some time, or ""."""
    if isinstance(value, str) and not value.strip():
        return ""
    expected = 'a cron expression such as "*/5 * * * *" (with six fields the first is seconds) or ""'
    if not isinstance(value, str) or len(value) > NAME_LIMIT:
        raise wrong(expected, value)
    try:
        next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(f"{wrong(expected, value)} ({error})") from None
    except StopIteration:
        raise wrong("a cron expression that fires within fifty years", value) from None
    return value


def timezone(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise wrong('a timezone such as "UTC" or "Europe/Vienna"', value)
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise wrong('a timezone such as "UTC" or "Europe/Vienna"', value) from None
    return value


def listen(value: Any) -> str:
    """`host:port`, `[v6]:port`, `unix:/path`, or "" for off."""
    if isinstance(value, str):
        if not value:
            return value
        if value.startswith("unix:") and value.removeprefix("unix:").startswith("/") and "\0" not in value:
            return value
        host, colon, port = value.rpartition(":")
        if colon and host and port.isascii() and port.isdigit() and int(port) < 65536 and _is_host(host):
            return value
    raise wrong('"host:port", "unix:/path/to/socket" or ""', value)


def _is_host(host: str) -> bool:
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:].removesuffix("]"))
        except ValueError:
            return False
        return host.endswith("]")
    return bool(re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host))


def is_local(address: str) -> bool:
    """Whether only this machine reaches a `listen` address."""
    if not address or address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def store_url(value: Any) -> str:
    """A URL of a known engine; no message shows it, as it may hold a password."""
    expected = 'expected "sqlite:////path/to/file" or "mysql://user@host:3306/database"'
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{expected}, got something else (not shown, as it may hold a password)")
    try:
        parts = urllib.parse.urlsplit(value)
        port = parts.port
        options = dict(urllib.parse.parse_qsl(parts.query))
    except ValueError:
        raise ValueError(f"{expected}, got a URL whose host, port or query cannot be read") from None
    database = parts.path.lstrip("/")
    match parts.scheme:
        case "sqlite":
            if not database or parts.hostname or port is not None:
                raise ValueError(f"{expected}, got an SQLite URL that does not name just a file")
        case "mysql":
            if not database or not (parts.hostname or options.get("unix_socket")):
                raise ValueError(f"{expected}, got a MySQL URL without a host (or unix_socket) or database")
        case _:
            raise ValueError(f"{expected}, got a URL of another kind")
    return value
