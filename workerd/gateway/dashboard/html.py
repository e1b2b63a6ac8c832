"""HTML as values: text is escaped unless it is markup already, so that what a handler said stays text."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from urllib.parse import quote

VOID = frozenset({"input", "meta", "link", "br", "hr"})


class Markup(str):
    """Text that is HTML; made by `el` alone."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]
Attribute = str | int | float | bool | None


def el(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """An element. `class_` is the attribute `class`, `data_id` is `data-id`; None and False are left out."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        words.append(attribute if value is True else f'{attribute}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in VOID else f"{start}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after the other."""
    return Markup("".join(map(_text, children)))


def _text(child: Child) -> str:
    match child:
        case None:
            return ""
        case Markup():
            return child
        case str():
            return escape(child)
        case int() | float():
            return str(child)
        case _:
            return join(*child)


def path(*parts: str) -> str:
    """A path of the gateway from parts that may hold anything."""
    return "/" + "/".join(quote(part, safe="") for part in parts)
