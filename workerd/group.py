"""A handler's group template, such as "{tenant}": which group a job belongs to, by its vars. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from string import Formatter
from typing import NamedTuple

import msgspec

from workerd.errors import InvalidValue

GROUP_LIMIT = 191
"""Characters of a group: the limit of an index."""


class GroupTemplate(NamedTuple):
    """Literal texts, each followed by the name of a var; the last may have none."""

    parts: tuple[tuple[str, str | None], ...]

    def fill(self, job_vars: bytes) -> str:
        """The group of a job with these vars, a JSON object. Raises InvalidValue if they do not give one."""
        try:
            values = msgspec.json.decode(job_vars)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidValue("group: cannot be filled, since the vars are not a JSON object") from None
        if not isinstance(values, Mapping):
            raise InvalidValue("group: cannot be filled, since the vars are not a JSON object")
        text = "".join(literal + _text(name, values) for literal, name in self.parts)
        return checked_group(text)


def checked_group(value: object) -> str:
    """A group that all engines store and compare alike. Raises InvalidValue."""
    if not isinstance(value, str) or not 0 < len(value) <= GROUP_LIMIT:
        raise InvalidValue(f"group: expected text of 1 to {GROUP_LIMIT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue("group: expected valid Unicode, got a lone surrogate") from None
    if value.endswith(" "):
        raise InvalidValue("group: expected no space at its end, which MySQL ignores")
    return value


def _text(name: str | None, values: Mapping[str, object]) -> str:
    if name is None:
        return ""
    value = values.get(name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    found = "none" if name not in values else "null" if value is None else "a list or an object"
    raise InvalidValue(f'group: expected text or a number in the var "{name}", got {found}')


@cache
def parse_template(text: str) -> GroupTemplate:
    """A template of texts and `{name}`, `{{` for a brace. Raises InvalidValue for anything else."""
    try:
        parts = tuple(Formatter().parse(text))
    except ValueError as error:
        raise InvalidValue(f'expected text with names of vars such as "{{tenant}}": {error}') from None
    for _, name, spec, conversion in parts:
        if name is not None and (not name.isidentifier() or spec or conversion):
            got = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise InvalidValue(f'expected names of vars such as "{{tenant}}", got "{{{got[:60]}}}"')
    if not any(name for _, name, _, _ in parts):
        raise InvalidValue('expected at least one name of a var such as "{tenant}", got none')
    if (length := sum(len(literal) for literal, _, _, _ in parts)) > GROUP_LIMIT:
        raise InvalidValue(f"expected at most {GROUP_LIMIT} characters beside the vars, got {length}")
    if parts[-1][1] is None and parts[-1][0].endswith(" "):
        raise InvalidValue("expected no space at its end, which MySQL ignores")
    return GroupTemplate(tuple((literal, name) for literal, name, _, _ in parts))
