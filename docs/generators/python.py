"""The page of the Python interface: signatures and docstrings of what users import."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import msgspec

import workerd
from workerd import document_types, errors, testing
from workerd.contrib import fastapi, sqlalchemy
from workerd.enqueuing import Enqueuing

WIDTH = 120
_INTERNAL = (errors.FrameTooLarge, errors.UnreadableRow)
"""Errors that no caller sees."""
_HEAD = """# Python

`pip install workerd`; everything here is imported from `workerd` unless a heading says otherwise. Types are checked by
`mypy --strict`; durations are seconds, text such as `"90s"`, or a `timedelta`.
"""
_ASYNC = """Each method of `Client` is a coroutine of it, with the same arguments, result and errors: `await jobs.enqueue(…)`."""
_DOCUMENTS = """What the methods of `Client` return. The names are those of HTTP and of the tables."""
_ERRORS = """All from `workerd.errors`. What is below another one in the list is a kind of it."""
_CONTRIB = """`from workerd.contrib import sqlalchemy` and the like; each needs its extra: `pip install "workerd[sqlalchemy]"`."""


def page() -> str:
    """All sections."""
    parts = [
        _HEAD,
        _section("Handlers", *_functions(workerd.handler, workerd.wrap, workerd.unwrap)),
        _class(workerd.Context, "###", made=False),
        *(_class(c, "###") for c in (workerd.Result, workerd.Retry, workerd.Failure)),
        *(_class(c, "###") for c in (workerd.DeadlineExceeded, workerd.Cancelled, workerd.Interrupted)),
        _class(workerd.Secret, "###"),
        _section("Enqueue in your own transaction", *_functions(workerd.enqueue, workerd.wake)),
        _decorated(),
        _class(workerd.JobSpec, "###"),
        _class(workerd.JobOptions, "###"),
        _class(workerd.Client, "##"),
        _section("AsyncClient", *_prose(workerd.AsyncClient), "", _ASYNC),
        _section("Documents", _DOCUMENTS),
        *(_class(c, "###") for c in _documents()),
        _section("Errors", _ERRORS, "", *_error_list(errors.WorkerdError)),
        _section(
            "Testing", "From `workerd.testing`: one run of a handler, without a daemon and a store.", ""
        ),
        *_functions(testing.run, testing.attempt),
        _class(testing.RunOutcome, "###"),
        _section("Frameworks", _CONTRIB),
        *_functions(sqlalchemy.enqueue, sqlalchemy.enqueue_async, sqlalchemy.include_name),
        *_functions(fastapi.lifespan, fastapi.client),
        "Django: the backend is described in [Django's tasks](../how-to/django.md).\n",
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def _decorated() -> str:
    """What the decorator adds; the class itself is nobody's business."""
    parts = ["### A decorated handler", "", "A function or class with `@handler` has two methods more.", ""]
    for method in (Enqueuing.spec, Enqueuing.enqueue):
        parts += [f"#### .{method.__name__}", "", *_signature(method), *_prose(method), ""]
    return "\n".join(parts)


def _section(title: str, *lines: str) -> str:
    return "\n".join((f"## {title}", "", *lines, ""))


def _documents() -> list[type]:
    names = ("Enqueued", "Changed", "Job", "Attempt", "Request", "Schedule", "ErrorGroup", "Act")
    return [getattr(document_types, name) for name in names]


def _functions(*functions: Any) -> Iterator[str]:
    for function in functions:
        module = function.__module__.removeprefix("workerd.")
        prefix = f"{module}." if module.startswith(("contrib", "testing")) else ""
        yield "\n".join(
            (f"### {prefix}{function.__name__}", "", *_signature(function), *_prose(function), "")
        )


def _class(kind: Any, level: str, made: bool = True) -> str:
    """A class with its fields, properties and methods. `made`: whether users call it."""
    lines = [f"{level} {kind.__name__}", "", *(_signature(kind) if made else []), *_prose(kind), ""]
    lines += _fields(kind)
    public = [(name, member) for name, member in vars(kind).items() if not name.startswith("_")]
    properties = [(name, _one_line(p)) for name, p in public if isinstance(p, property) and p.__doc__]
    lines += [f"- `{name}`: {text}" for name, text in properties] + [""]
    for name, member in public:
        if inspect.isfunction(member):
            lines += [f"{level}# {kind.__name__}.{name}", "", *_signature(member), *_prose(member), ""]
    return "\n".join(lines)


def _fields(kind: Any) -> list[str]:
    """A table of names and types, of what is a record."""
    if not (is_dataclass(kind) or issubclass(kind, msgspec.Struct)):
        return []
    rows = [f"| `{name}` | `{_type(kind, text)}` |" for name, text in kind.__annotations__.items()]
    return ["| field | type |", "|---|---|", *rows, ""]


def _type(kind: Any, annotation: str) -> str:
    """As text; private names are what they stand for."""
    text = annotation.removeprefix("Annotated[").partition(", Option(")[0]
    module = sys.modules[kind.__module__]
    text = re.sub(r"\b_\w+", lambda name: inspect.formatannotation(getattr(module, name[0])), text)
    return re.sub(r"\s+", " ", text).replace("typing.", "").replace("|", "\\|")


def _signature(member: Any) -> list[str]:
    """As it is called, over several lines where one is too short; nothing for a class without a way to make it."""
    if inspect.isclass(member) and ("__init__" not in vars(member) or is_dataclass(member)):
        return []
    called = member.__init__ if inspect.isclass(member) else member
    signature = inspect.signature(
        typing.get_overloads(called)[-1] if typing.get_overloads(called) else called
    )
    parameters = _parameters([p for name, p in signature.parameters.items() if name != "self"])
    returned = "" if inspect.isclass(member) else f" -> {_plain(signature.return_annotation)}"
    start = f"{'async ' * inspect.iscoroutinefunction(called)}{member.__name__}("
    text = f"{start}{', '.join(parameters)}){returned}"
    if len(text) > WIDTH:
        inside = "".join(f"    {parameter},\n" for parameter in parameters)
        text = f"{start}\n{inside}){returned}"
    return ["```text", text, "```", ""]


def _parameters(parameters: list[inspect.Parameter]) -> list[str]:
    found: list[str] = []
    keywords = False
    for number, one in enumerate(parameters):
        if one.kind is one.KEYWORD_ONLY and not keywords:
            keywords = True
            found += ["*"] if not any(p.kind is p.VAR_POSITIONAL for p in parameters) else []
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        annotation = "" if one.annotation is one.empty else f": {_plain(one.annotation)}"
        equals = " = " if annotation else "="
        default = "" if one.default is one.empty else f"{equals}{one.default!r}"
        found.append(f"{stars}{one.name}{annotation}{default}")
        following = parameters[number + 1] if number + 1 < len(parameters) else None
        if one.kind is one.POSITIONAL_ONLY and (following is None or following.kind is not one.kind):
            found.append("/")
    return found


def _plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _prose(member: Any) -> list[str]:
    """The docstring; indented parts are code, and names with their meaning indented below a list."""
    lines: list[str] = []
    for paragraph in (inspect.getdoc(member) or "").split("\n\n"):
        if paragraph.startswith("    "):
            lines += ["```text", textwrap.dedent(paragraph), "```", ""]
        elif _ENTRY.match(paragraph):
            for entry in re.split(r"\n(?=\S)", paragraph):
                names, text = _ENTRY.match(entry).groups()  # type: ignore[union-attr] -- all lines are entries
                shown = ", ".join(f"`{name}`" for name in names.split(", "))
                lines += _wrapped(f"- {shown}: {text}", "  ")
            lines.append("")
        else:
            lines += [*_wrapped(paragraph), ""]
    return lines[:-1]


_ENTRY = re.compile(r"(\w+(?:, \w+)*)\n {4}(.*)", re.DOTALL)


def _wrapped(text: str, indent: str = "") -> list[str]:
    text = re.sub(r"\bRaises\b", "**Raises**", re.sub(r"\s+", " ", text))
    return textwrap.wrap(
        text, WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent
    )


def _one_line(member: Any) -> str:
    return re.sub(r"\s+", " ", inspect.getdoc(member) or "")


def _error_list(error: type[BaseException], depth: int = 0) -> Iterator[str]:
    yield f"{'  ' * depth}- `{error.__name__}`: {_one_line(error)}"
    for below in error.__subclasses__():
        if below.__module__ == errors.__name__ and below not in _INTERNAL:
            yield from _error_list(below, depth + 1)
