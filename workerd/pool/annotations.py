"""Annotations as types, and the fields of a type with their names in JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from inspect import get_annotations
from types import SimpleNamespace
from typing import (
    Any,
    Literal,
    NamedTuple,
    NewType,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec


class TypeField(NamedTuple):
    """One field. `name`: in JSON; of what JSON has as an array, its place there."""

    name: str
    annotation: Any


def resolved(annotation: Any, scope: dict[str, Any]) -> Any:
    """The type that an annotation names, or its text if that cannot be evaluated."""
    alone = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return get_type_hints(alone, scope, include_extras=True)["it"]
    except Exception:  # evaluating a user's annotation may raise anything
        return getattr(annotation, "__forward_arg__", annotation)


def walked(annotation: Any, path: str = "", aliases: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The annotation and all that it is made of, each with the path where its values are.

    `aliases`: those that it is in, as an alias may name itself.
    """
    while isinstance(annotation, NewType):
        annotation = annotation.__supertype__
    if type(annotation).__name__ == "TypeAliasType":  # of a `type` statement, or of typing_extensions
        if annotation not in aliases:
            yield from walked(annotation.__value__, path, (*aliases, annotation))
        return
    annotation = getattr(annotation, "__forward_arg__", annotation)
    yield path, annotation
    origin = get_origin(annotation)
    if origin is Literal or _has_fields(origin):
        return
    is_container = isinstance(origin, type) and issubclass(origin, Iterable)
    for part in get_args(annotation):
        yield from walked(part, f"{path}.*" if is_container else path, aliases)


def classes(annotation: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Those of them that have fields."""
    return (found for found in walked(annotation, path) if _has_fields(get_origin(found[1]) or found[1]))


def _has_fields(cls: Any) -> bool:
    return isinstance(cls, type) and (
        is_dataclass(cls)
        or is_typeddict(cls)
        or issubclass(cls, msgspec.Struct)
        or hasattr(cls, "__attrs_attrs__")
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    )


def fields(annotation: Any) -> list[TypeField]:
    """The fields of one of `classes`."""
    cls = get_origin(annotation) or annotation
    arguments = dict(zip(getattr(cls, "__parameters__", ()), get_args(annotation), strict=False))
    return [
        TypeField(names.get(name, name), _with_arguments(found, arguments))
        for names in [_json_names(cls)]
        for name, found in _hints(cls).items()
    ]


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception:  # one that cannot be evaluated does not affect the others
        return {
            name: resolved(annotation, vars(sys.modules.get(base.__module__, sys)))
            for base in reversed(cls.__mro__)
            for name, annotation in get_annotations(base).items()
        }


def _json_names(cls: Any) -> dict[str, str]:
    if issubclass(cls, msgspec.Struct):
        if not cls.__struct_config__.array_like:
            return dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
        first = 0 if cls.__struct_config__.tag is None else 1
        return {name: str(place) for place, name in enumerate(cls.__struct_fields__, first)}
    if issubclass(cls, tuple):
        return {name: str(place) for place, name in enumerate(cls._fields)}
    return {}


def _with_arguments(annotation: Any, arguments: dict[Any, Any]) -> Any:
    """The annotation of a generic type's field with what stands for its type variables."""
    if isinstance(annotation, TypeVar):
        return arguments.get(annotation, annotation)
    variables = getattr(annotation, "__parameters__", ()) if arguments else ()
    return annotation[tuple(arguments.get(one, one) for one in variables)] if variables else annotation
