"""What every table of the configuration is built of."""

from __future__ import annotations

from functools import cache
from typing import cast, get_type_hints

import msgspec

from workerd.config import validators as v

DAY_S = 86400.0
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NestedKeys = dict[str, v.Validator]
Keys = dict[str, v.Validator | NestedKeys]
"""Key -> its validator, or the keys of a table inside the table."""


class ConfigValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen, comparable part of the configuration."""


class NestedTable(ConfigValue, frozen=True):
    """A table that is written inside another one, as the value of a key."""


@cache
def keys_of(table: type[ConfigValue]) -> Keys:
    """The keys that may be written in this table, in order; other fields are derived."""
    keys: Keys = {}
    for field, hint in get_type_hints(table, include_extras=True).items():
        name = field.rstrip("_")  # `finally` cannot be a field's name
        if isinstance(hint, type) and issubclass(hint, NestedTable):
            keys[name] = cast(NestedKeys, keys_of(hint))
        keys.update(
            (name, extra) for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, v.Validator)
        )
    return keys
