"""What a handler's vars must be: derived by the pool that loads it, checked wherever jobs are enqueued.

A signature is stored as JSON. Its types are a small vocabulary (`code`), because the enqueuing process does
not have the handler's classes; the worker checks again with the real ones.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import GenericAlias
from typing import Any, Literal, NamedTuple, Union

import msgspec
from msgspec import inspect as types

from workerd.errors import InvalidValue
from workerd.redaction import NOTHING, Redaction

Code = Any
"""JSON: "any", "int", …, ["list", code], ["dict", code], ["or", code, …] or ["in", value, …]."""


class Param(msgspec.Struct, frozen=True, omit_defaults=True):
    """One parameter. `type` is for display, `code` for the check; `default` is None if unknown."""

    name: str
    type: str = "Any"
    code: Code = "any"
    required: bool = False
    default: Any = None
    is_str: bool = False
    kind: Literal["keyword", "positional"] = "keyword"


class Signature(msgspec.Struct, frozen=True):
    """The parameters that accept vars; `open`: other names are accepted too.

    `redact`: paths whose values are not shown, so that every node knows them.
    """

    params: tuple[Param, ...]
    open: bool = False
    redact: tuple[str, ...] = ()


class BadVars(InvalidValue):
    """The vars do not match the signature; the message names the field."""


# -- types as codes ----------------------------------------------------------------------------

_PLAIN: dict[type[types.Type], str] = {
    types.AnyType: "any",
    types.RawType: "any",
    types.NoneType: "null",
    types.BoolType: "bool",
    types.IntType: "int",
    types.FloatType: "float",
    types.StrType: "str",
    types.BytesType: "bytes",
    types.ByteArrayType: "bytes",
    types.DateTimeType: "datetime",
    types.DateType: "date",
    types.TimeType: "time",
    types.TimeDeltaType: "timedelta",
    types.UUIDType: "uuid",
    types.DecimalType: "decimal",
    types.StructType: "object",
    types.DataclassType: "object",
    types.TypedDictType: "object",
    types.TupleType: "array",
    types.NamedTupleType: "array",
}
_PYTHON: dict[str, Any] = {
    "any": Any,
    "null": None,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "bytes": bytes,
    "datetime": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "uuid": uuid.UUID,
    "decimal": decimal.Decimal,
    "object": dict[str, Any],
    "array": list[Any],
}


def code_of(annotation: Any) -> Code | None:
    """The code of a type; None if msgspec cannot check it, so that any value must be accepted."""
    try:
        return _code(types.type_info(annotation))
    except (TypeError, ValueError, NameError, AttributeError, RecursionError):
        return None


def _code(info: types.Type) -> Code:
    plain = _PLAIN.get(type(info))
    if isinstance(info, types.StructType) and info.array_like:
        return "array"
    if plain is not None:
        return plain
    match info:
        case types.Metadata():
            return _code(info.type)
        case types.CollectionType():
            return ["list", _code(info.item_type)]
        case types.DictType():
            # Keys of JSON objects are text; only the worker can convert them.
            return ["dict", _code(info.value_type)]
        case types.UnionType():
            return ["or", *(_code(part) for part in info.types)]
        case types.LiteralType():
            return ["in", *info.values]
        case types.EnumType():
            return _choices([member.value for member in info.cls])
    raise TypeError(f"no code for {info}")


def _choices(values: list[Any]) -> Code:
    return ["in", *values] if all(type(v) in (int, str) for v in values) else "any"


_UNION: Any = Union
_LITERAL: Any = Literal


def type_of(code: Code) -> Any:
    """The type that a code is checked with; Any for a code of a later version."""
    match code:
        case str():
            return _PYTHON.get(code, Any)
        case ["list", item]:
            return GenericAlias(list, (type_of(item),))
        case ["dict", item]:
            return GenericAlias(dict, (str, type_of(item)))
        case ["or", *parts]:
            return _UNION[tuple(type_of(part) for part in parts)]
        case ["in", *values]:
            return _LITERAL[tuple(values)]
    return Any


# -- fields: names and types, checked as one object --------------------------------------------


class Absent:
    """Marks a field that was not given, so that the function's own default applies."""


ABSENT = Absent()


class Field(NamedTuple):
    """One named value of vars."""

    name: str
    type: Any
    required: bool


class Fields:
    """A strictly typed JSON object with these fields; `open`: others are accepted too."""

    def __init__(self, fields: Sequence[Field], open: bool = False) -> None:
        self.names = tuple(field.name for field in fields)
        self.open = open
        # The fields are renamed: a parameter may have a name that a Struct cannot.
        self._struct = msgspec.defstruct(
            "vars",
            [
                (f"f{i}", field.type)
                if field.required
                else (f"f{i}", field.type, msgspec.field(default=ABSENT))
                for i, field in enumerate(fields)
            ],
            rename=dict(zip((f"f{i}" for i in range(len(self.names))), self.names, strict=True)),
            kw_only=True,
            forbid_unknown_fields=not open,
            gc=False,
        )
        self._decoder = msgspec.json.Decoder(self._struct)

    def decode(self, data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode JSON text: values in the order of the fields (ABSENT if not given), and others by name.

        Raises BadVars.
        """
        try:
            if self.open:
                return self._split(msgspec.json.decode(data))
            return msgspec.structs.astuple(self._decoder.decode(data)), {}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadVars(explain(error, self.names)) from None

    def convert(self, values: Mapping[str, Any]) -> None:
        """Check decoded values. Raises BadVars."""
        try:
            msgspec.convert(values, self._struct)
        except (msgspec.ValidationError, RecursionError) as error:
            raise BadVars(explain(error, self.names)) from None

    def _split(self, values: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        known = msgspec.structs.astuple(msgspec.convert(values, self._struct))
        return known, {name: value for name, value in values.items() if name not in self.names}


_AT = re.compile(r" - at `(?:(?:key|value)` in `)?(\$[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(.+?)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`", re.DOTALL)


def explain(error: Exception, names: tuple[str, ...] = ()) -> str:
    """An error of msgspec as one sentence that begins with the field: `vars.width: expected int, got str`."""
    # msgspec has an error of its own for it since 0.23.
    if isinstance(error, UnicodeDecodeError) or str(error).startswith("Invalid UTF-8"):
        return "vars: expected valid UTF-8, got other bytes"
    if isinstance(error, RecursionError):
        return "vars: expected less than a thousand levels of nesting"
    if not isinstance(error, msgspec.ValidationError):
        return f"vars: expected a JSON object, got something else: {error}"
    text = str(error)
    where = "vars"
    if at := _AT.search(text):
        where, text = f"vars{at[1][1:]}", text[: at.start()]
    if missing := _MISSING.match(text):
        return f"{where}.{missing[1]}: required, but not given"
    if unknown := _UNKNOWN.match(text):
        known = ", ".join(names) or "none"
        hint = f"; the handler takes {known}" if where == "vars" else ""
        return f"{where}.{unknown[1]}: not known{hint}"
    return f"{where}: {text[:1].lower()}{text[1:].replace('`', '')}"


# -- checking at enqueue -------------------------------------------------------------------


@lru_cache(maxsize=1024)
def parse(signature: bytes) -> Signature | None:
    """Decode a stored signature; None if its version is unknown."""
    try:
        return msgspec.json.decode(signature, type=Signature)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def with_redaction(signature: bytes | None, paths: Sequence[str]) -> bytes | None:
    """The signature, which says these paths too."""
    known = None if signature is None else parse(signature)
    if not paths or (signature is not None and known is None):
        return signature
    known = known or Signature((), True)
    redact = tuple(dict.fromkeys((*known.redact, *paths)))
    return msgspec.json.encode(msgspec.structs.replace(known, redact=redact))


def redaction_of(signature: bytes | None) -> Redaction:
    """What the signature says is not shown."""
    known = None if signature is None else parse(signature)
    return Redaction(known.redact) if known is not None and known.redact else NOTHING


@lru_cache(maxsize=1024)
def _fields(signature: bytes) -> Fields | None:
    known = parse(signature)
    if known is None:
        return None
    try:
        return Fields([Field(p.name, type_of(p.code), p.required) for p in known.params], known.open)
    except (TypeError, ValueError):
        return None


def check_vars(signature: bytes | None, values: Mapping[str, Any]) -> str | None:
    """What is wrong with decoded vars, in one sentence; None if they match or no signature is known."""
    fields = None if signature is None else _fields(signature)
    if fields is None:
        return None
    try:
        fields.convert(values)
    except BadVars as error:
        return str(error)
    return None


def coerce_texts(signature: bytes | None, texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of `key=value` texts: text where the signature says `str`, else JSON where it parses."""
    known = None if signature is None else parse(signature)
    verbatim = {param.name for param in known.params if param.is_str} if known else set()
    return {name: text if name in verbatim else _json_or_text(text) for name, text in texts.items()}


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text
