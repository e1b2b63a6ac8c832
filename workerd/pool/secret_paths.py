"""Paths of the vars that a handler's author marked as Secret: whole parameters, and fields of their types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, Unpack, get_args, get_origin

from workerd.pool.annotations import classes, fields, walked
from workerd.redaction import Secret

MAX_DEPTH = 8
"""Levels of fields; what has a Secret further down is redacted whole."""
MAX_PATHS = 100
"""Of one parameter; one that would need more is redacted whole."""
MAX_CLASSES = 500
"""That are searched for a Secret; what is made of more is redacted whole: some generic types have no end."""


def secret_paths(name: str, annotation: Any) -> tuple[str, ...]:
    """Where the parameter is marked: itself, or fields of its types as `card.number`, `cards.*.number`."""
    path = _segment(name)
    try:
        found = tuple(islice(_paths(path, annotation, ()), MAX_PATHS + 1))
    except Exception:  # types of a user may run code that raises; what cannot be read may have a Secret
        return (path,)
    return tuple(dict.fromkeys(found)) if len(found) <= MAX_PATHS else (path,)


def secret_paths_of_others(annotation: Any) -> tuple[str, ...]:
    """The same for `**others`, which may have any names, or those of `Unpack[…]`."""
    if get_origin(annotation) is Unpack:
        [names] = get_args(annotation)
        return tuple(path for field in fields(names) for path in secret_paths(*field))
    return secret_paths("*", annotation)


def _paths(path: str, annotation: Any, around: tuple[Any, ...]) -> Iterator[str]:
    """`around`: the types that the annotation is in."""
    if _is_marked(annotation):
        yield path
        return
    for below, found in classes(annotation, path):
        if not _has_marked(found):
            continue
        if found in around or len(around) == MAX_DEPTH:
            # A path has a fixed length, so a recursive type is hidden from here on rather than shown.
            yield below
            continue
        for field in fields(found):
            yield from _paths(f"{below}.{_segment(field.name)}", field.annotation, (*around, found))


def _segment(name: str) -> str:
    """The name in a path; one that no path can have stands there as any name."""
    return "*" if not name or "." in name else name


def _is_marked(annotation: Any) -> bool:
    """Whether it is marked as `Secret`, in a union too; one that cannot be resolved is read as text."""
    return any(map(_is_mark, (found for _, found in walked(annotation))))


def _is_mark(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return bool(re.search(r"\bSecret\b", annotation))
    marks = getattr(annotation, "__metadata__", ())
    return any(mark is Secret or isinstance(mark, Secret) for mark in marks)


def _has_marked(cls: Any) -> bool:
    """Whether any field in it is marked, at whatever depth."""
    seen: set[Any] = set()
    waiting = [cls]
    while waiting:
        cls = waiting.pop()
        key = cls if isinstance(cls, type) else repr(cls)
        if key in seen:
            continue
        seen.add(key)
        for field in fields(cls):
            if _is_marked(field.annotation) or len(seen) > MAX_CLASSES:
                return True
            waiting += (found for _, found in classes(field.annotation))
    return False
