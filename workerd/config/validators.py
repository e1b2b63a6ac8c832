"""What a configuration value may be: each validator converts TOML's value or says what it expected."""

from __future__ import annotations

import ipaddress
import os
import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cronsim import CronSim, CronSimError

from workerd import json_text
from workerd.config import command_line
from workerd.config.quantities import (
    MAX_DURATION_S,
    MAX_SIZE_BYTES,
    MAX_WINDOW_S,
    duration,
    duration_literal,
    size,
    size_literal,
)
from workerd.config.store_url import STORE_URL_FORM, parse_store_url
from workerd.config.wrong_value import wrong
from workerd.errors import InvalidValue
from workerd.group import parse_template
from workerd.host import processors
from workerd.rate_limit import Rate
from workerd.redaction import checked_path
from workerd.text import line


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


def _validator(expects: str, unit: str = "") -> Callable[[Callable[[Any], Any]], Validator]:
    return lambda convert: Validator(convert, expects, unit)


NAME_LIMIT = 191
"""Characters of a name; what an index of the store holds."""

_IDENTIFIER = r"[^\W\d]\w*"
_HOST_PATTERN = re.compile(
    r"(\*\.)?[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?"
)
_DOTTED = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*")
_EXIT = re.compile(r"Exit:[0-9]{1,3}")
_REFERENCE = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}(\.{_IDENTIFIER})*")


@_validator("anything")
def anything(value: Any) -> Any:
    return value


@_validator("a table")
def table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong("a table", value)
    return value


def json_table_of(name: str) -> Validator:
    """A table of values that JSON can represent; `name`: what its values are called in messages."""

    def convert(value: Any) -> dict[str, Any]:
        found: dict[str, Any] = table(value)
        json_text.check_finite(name, found)
        return found

    return Validator(convert, "a table of values that JSON can represent")


json_table = json_table_of("vars")


@_validator("true or false")
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


@_validator('a whole number from 1 to 1000, or "auto"')
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


@_validator('a duration or ""', "duration")
def duration_or_none(value: Any) -> float | None:
    """Seconds; "" is None."""
    if value == "" and isinstance(value, str):
        return None
    try:
        return duration(value)
    except InvalidValue as error:
        raise InvalidValue(str(error).replace(", got", ' or "", got', 1)) from None


@_validator('a duration from "1s" to "366d", or ""', "duration")
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


@_validator("a table of texts")
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


@_validator("a table of texts, with label names as Prometheus allows them")
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


@_validator(f"a name of 1 to {NAME_LIMIT} printable characters, without a space at its end")
def name(value: Any) -> str:
    # MySQL compares names as if they had no spaces at their ends.
    fits = isinstance(value, str) and 0 < len(value) <= NAME_LIMIT
    if not fits or not value.isprintable() or value.endswith(" "):
        raise wrong(name.expects, value)
    return str(value)


def unreserved_name(value: object) -> str:
    """A name that is none of workerd's own. Raises InvalidValue."""
    found: str = name(value)
    if found.startswith("~"):
        raise InvalidValue("expected a name without ~ at its beginning, which is reserved")
    return found


@_validator('a host name, with or without port, or "*.example.org" for all names below it')
def host_pattern(value: Any) -> str:
    if not isinstance(value, str) or not _HOST_PATTERN.fullmatch(value):
        raise wrong(host_pattern.expects, value)
    return value


@_validator("a path")
def path(value: Any) -> Path:
    """A path, made absolute, because a daemon leaves the folder that it was started in."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise wrong(path.expects, value)
    return Path(value).absolute()


@_validator("a path")
def path_text(value: Any) -> str:
    return str(path(value))


@_validator('a class such as "ValueError", "package.module.Class" or, of a command, "Exit:4"')
def class_name(value: Any) -> str:
    """A class by builtin name or dotted path; it is resolved where the handler is loaded."""
    if not isinstance(value, str) or not (_DOTTED.fullmatch(value) or _EXIT.fullmatch(value)):
        raise wrong(class_name.expects, value)
    return value


@_validator('"module:attribute" such as "shop.images:thumbnail"')
def reference(value: Any) -> str:
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise wrong(reference.expects, value)
    return value


@_validator("a list of texts: a program and its arguments, with {name} for values of vars")
def command(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise wrong(command.expects, value)
    if value:
        command_line.check_program(command_line.check_argument(value[0]))
    return tuple(map(command_line.check_argument, value))


@_validator('a table of types by the names of vars, such as { month = "str" }')
def signature(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise wrong(signature.expects, value)
    found = {}
    for key, kind in value.items():
        try:
            found[key] = command_line.check_type(kind)
        except InvalidValue as error:
            raise InvalidValue(f"{line(key)[:60]}: {error}") from None
    return found


@_validator('an address such as "https://example.org/hook"')
def http_url(value: Any) -> str:
    """An address of HTTP without a user name: a secret in it would be in logs and backups."""
    is_text = isinstance(value, str) and value.isascii() and value.isprintable()
    try:
        parts = urlsplit(value) if is_text else None
        fits = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
        fits = fits and parts is not None and parts.port != 0 and "@" not in parts.netloc and " " not in value
    except ValueError:  # a port that is no number, an IPv6 address without its end
        fits = False
    if not fits:
        raise wrong(http_url.expects, value)
    return str(value)


@_validator("an absolute path of a file")
def file_path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise wrong(file_path.expects, value)
    return value


def _or_empty(validator: Validator) -> Validator:
    def convert(value: Any) -> Any:
        return "" if isinstance(value, str) and not value else validator(value)

    return Validator(convert, f'{validator.expects}, or ""')


name_or_empty = _or_empty(name)
path_or_empty = _or_empty(path_text)
CREDENTIALS = Path("/run/credentials/workerd.service")
"""Where systemd puts the credentials of the unit that the configuration may name."""


def _credential(validator: Validator) -> Validator:
    """A path; a credential of workerd.service is looked for where the unit of this daemon has it."""

    def convert(value: Any) -> str:
        given: str = validator(value)
        own = os.environ.get("CREDENTIALS_DIRECTORY")
        return f"{own}/{Path(given).name}" if own and Path(given).parent == CREDENTIALS else given

    return Validator(convert, validator.expects)


credential = _credential(file_path)
credential_or_empty = _or_empty(_credential(path_text))
reference_or_empty = _or_empty(reference)


@_validator('text with names of vars such as "{tenant}", or ""')
def group_template(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(group_template.expects, value)
    if value:
        parse_template(value)
    return value


@_validator('a path such as "password", "card.*" or "*.token"')
def redact_path(value: Any) -> str:
    return checked_path(value)


MAX_RATE_COUNT = 1_000_000
MAX_RATE_PERIOD_S = 31 * 86400.0
_RATE = re.compile(r"\s*([0-9]{1,9})\s*/\s*(\S.*?)\s*", re.ASCII)


@_validator('a rate such as "100/1m" (1 to 1000000 per 1ms to 31d), or ""')
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


@_validator('a cron expression such as "*/5 * * * *" (with six fields the first is seconds) or ""')
def cron(value: Any) -> str:
    """A cron expression of five or six fields that fires at some time, or ""."""
    if isinstance(value, str) and not value.strip():
        return ""
    if not isinstance(value, str) or len(value) > NAME_LIMIT:
        raise wrong(cron.expects, value)
    _check_cron_steps(value)
    try:
        next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise InvalidValue(f"{wrong(cron.expects, value)} ({error})") from None
    except StopIteration:
        raise wrong("a cron expression that fires within fifty years", value) from None
    return value


_CRON_SPANS = (60, 60, 24, 31, 12, 8)
"""How many values each field of a cron expression has, seconds first."""


def _check_cron_steps(expression: str) -> None:
    """Refuse a step wider than its field, of which a parser would take the first value alone."""
    fields = expression.split()
    for field, span in zip(fields, _CRON_SPANS[-len(fields) :], strict=False):
        for step in re.findall(r"/([0-9]+)", field):
            if int(step[:9]) > span:
                raise InvalidValue(f"{wrong(cron.expects, expression)} (the step {step[:9]} is out of range)")


@_validator('a time zone such as "UTC" or "Europe/Vienna"')
def timezone(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(timezone.expects, value)
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise wrong(timezone.expects, value) from None
    return value


@_validator('"host:port", "unix:/path/to/socket" or ""')
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
    raise wrong(listen.expects, value)


def _is_host(host: str) -> bool:
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:].removesuffix("]"))
        except ValueError:
            return False
        return host.endswith("]")
    return bool(re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host))


def is_local(address: str) -> bool:
    """Whether a `listen` address can be reached from this host only."""
    if not address or address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@_validator(STORE_URL_FORM)
def store_url(value: Any) -> str:
    """A URL that the store accepts; no message shows it, as it may hold a password."""
    if not isinstance(value, str):
        raise InvalidValue(f"expected {STORE_URL_FORM}, got something else")
    parse_store_url(value)
    return value
