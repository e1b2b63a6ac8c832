"""Validators of texts with a form: names, paths, references to code, templates, cron expressions."""

from __future__ import annotations

import os
import re
import zoneinfo
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cronsim import CronSim, CronSimError

from workerd.config import command_line
from workerd.config.validators import Validator, or_empty, validator
from workerd.config.wrong_value import refuse_reserved, wrong
from workerd.errors import InvalidValue
from workerd.group import parse_template
from workerd.redaction import checked_path
from workerd.text import line

NAME_LIMIT = 191
"""Characters of a name; what an index of the store holds."""

_IDENTIFIER = r"[^\W\d]\w*"
_DOTTED = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*")
_EXIT = re.compile(r"Exit:[0-9]{1,3}")
_REFERENCE = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}(\.{_IDENTIFIER})*")


@validator(f"a name of 1 to {NAME_LIMIT} printable characters, without a space at its end")
def name(value: Any) -> str:
    # MySQL compares names as if they had no spaces at their ends.
    fits = isinstance(value, str) and 0 < len(value) <= NAME_LIMIT
    if not fits or not value.isprintable() or value.endswith(" "):
        raise wrong(name.expects, value)
    return str(value)


@validator(name.expects)
def unreserved_name(value: Any) -> str:
    """A name that is none of workerd's own: of a schedule, or of a handler whose jobs others may make."""
    found: str = name(value)
    refuse_reserved(found)
    return found


@validator("a path")
def path(value: Any) -> Path:
    """A path, made absolute, because a daemon leaves the folder that it was started in."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise wrong(path.expects, value)
    return Path(value).absolute()


@validator("a path")
def path_text(value: Any) -> str:
    return str(path(value))


@validator('a class such as "ValueError", "package.module.Class" or, of a command, "Exit:4"')
def class_name(value: Any) -> str:
    """A class by builtin name or dotted path; it is resolved where the handler is loaded."""
    if not isinstance(value, str) or not (_DOTTED.fullmatch(value) or _EXIT.fullmatch(value)):
        raise wrong(class_name.expects, value)
    return value


@validator('"module:attribute" such as "shop.images:thumbnail"')
def reference(value: Any) -> str:
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise wrong(reference.expects, value)
    return value


@validator("a list of texts: a program and its arguments, with {name} for values of vars")
def command(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise wrong(command.expects, value)
    if value:
        command_line.check_program(command_line.check_argument(value[0]))
    return tuple(map(command_line.check_argument, value))


@validator('a table of types by the names of vars, such as { month = "str" }')
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


@validator("an absolute path of a file")
def file_path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise wrong(file_path.expects, value)
    return value


name_or_empty = or_empty(name)
unreserved_name_or_empty = or_empty(unreserved_name)
path_or_empty = or_empty(path_text)
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
credential_or_empty = or_empty(_credential(path_text))
reference_or_empty = or_empty(reference)


@validator('text with names of vars such as "{tenant}", or ""')
def group_template(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(group_template.expects, value)
    if value:
        parse_template(value)
    return value


@validator('a path such as "password", "card.*" or "*.token"')
def redact_path(value: Any) -> str:
    return checked_path(value)


@validator('a cron expression such as "*/5 * * * *" (with six fields the first is seconds) or ""')
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


@validator('a time zone such as "UTC" or "Europe/Vienna"')
def timezone(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(timezone.expects, value)
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise wrong(timezone.expects, value) from None
    return value
