"""What pages are made of: escaped elements, tables, cards, buttons, and values in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from workerd.clock import to_rfc3339, to_text

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


JSON_SHOWN = 20_000
"""Characters of a document that a page shows."""


def seconds(value: float | None) -> str:
    """`0.4 ms`, `12.3 s`, `5 min 02 s`, `3 h 20 min`, `2 d 4 h`."""
    if value is None:
        return "–"
    if value < 0.9995:
        return f"{value * 1000:.1f} ms" if value < 0.0995 else f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def microseconds(value: int | None) -> str:
    """A duration that a row holds."""
    return "–" if value is None else seconds(value / 1e6)


def size(value: float | None) -> str:
    """A size in powers of 1024."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(value: float | None) -> str:
    """`1,234`, `12.3`, `0.25`."""
    if value is None:
        return "–"
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: int, cap: int) -> str:
    """A count that was not followed beyond `cap`."""
    return f"{cap:,}+" if value >= cap else f"{value:,}"


def plural(amount: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def moment(us: int | None) -> Child:
    """A store time; the page's script shows how long ago it is, and the time itself beside it."""
    if us is None:
        return "–"
    return el("time", to_text(us)[:19], datetime=to_rfc3339(us), class_="ago")


_TONES = {
    "completed": "good", "up": "good", "ok": "good", "ready": "good", "held": "good", "active": "good",
    "inprogress": "busy", "running": "busy", "starting": "busy", "reloading": "busy", "loading": "busy",
    "new": "wait", "scheduled": "wait", "queuing": "wait", "retry": "warn", "backoff": "warn",
    "failure": "bad", "failed": "bad", "quarantined": "bad", "lost": "bad", "away": "bad",
    "paused": "warn", "cancelled": "mute", "draining": "warn", "stopping": "warn",
}  # fmt: skip
_NAMES = {"inprogress": "running", "new": "waiting"}


def badge(state: str, more: str | None = None) -> Markup:
    """A state, told by its word as well as by its colour."""
    name = _NAMES.get(state, state)
    return el("span", name, f" · {more}" if more else None, class_=f"badge {_TONES.get(state, 'mute')}")


def document(value: Any) -> str:
    """A JSON value over several lines, cut where it becomes too long to look at."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= JSON_SHOWN else text[:JSON_SHOWN] + "\n… cut here"


def short_id(text: str) -> str:
    """What tells ids of one list apart: UUIDv7 begin alike, their ends do not."""
    return f"{text[:8]}…{text[-6:]}"


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Child]], empty: str) -> Markup:
    """A table that becomes a list of cards where the screen is narrow; `empty`: what to say without rows."""
    if not rows:
        return el("p", empty, class_="empty")
    head = el("tr", [el("th", header, scope="col", role="columnheader") for header in headers], role="row")
    body = [
        el(
            "tr",
            [
                el("td", el("div", cell), data_label=header, role="cell", class_=_class(cell))
                for header, cell in zip(headers, row, strict=True)
            ],
            role="row",
        )
        for row in rows
    ]
    # The roles say again what the elements are: a table laid out as cards loses its meaning otherwise.
    return el(
        "div",
        el(
            "table",
            el("caption", caption, class_="unseen"),
            el("thead", head, role="rowgroup"),
            el("tbody", body, role="rowgroup"),
            role="table",
        ),
        class_="table",
    )


def _class(cell: Child) -> str | None:
    return "none" if cell in ("–", "0") else None


def card(title: str, *children: Child, note: Child = None, wide: bool = False, ident: str = "") -> Markup:
    """A titled part of a page."""
    heading = el("h2", title, id=ident or None)
    return el(
        "section",
        el("header", heading, el("p", note, class_="note") if note else None),
        children,
        class_="card wide" if wide else "card",
    )


def facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Names and values; what is None is left out."""
    shown = [(name, value) for name, value in pairs if value is not None]
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in shown], class_="facts")


def button(
    label: str, post: str, *, ask: str | None = None, reason: bool = False, go: bool = False, what: str = ""
) -> Markup:
    """A button that sends POST; `ask`: a question before, `reason`: with a field for why, `go`: follow it.

    `what`: what it is done to, for those who hear the page.
    """
    return el(
        "button", label, type="button", data_post=post, data_ask=ask, data_reason=reason, data_go=go,
        aria_label=f"{label} {what}" if what else None,
    )  # fmt: skip


def pager(base: str, query: str, following: str | None, first: bool) -> Markup:
    """Links to the newest page and to what follows; `query`: the filters, URL-encoded."""
    lead = f"{base}?{query}&" if query else f"{base}?"
    return el(
        "nav",
        None if first else el("a", "« Newest", href=lead[:-1]),
        el("a", "Older »", href=f"{lead}after={following}", rel="next") if following else None,
        class_="pager",
        aria_label="Pages",
    )


def select(name: str, label: str, options: Sequence[tuple[str, str]], chosen: str) -> Markup:
    """A labelled choice of a filter form."""
    return el(
        "label",
        label,
        el(
            "select",
            [el("option", text, value=value, selected=value == chosen) for value, text in options],
            name=name,
        ),
    )


def code(text: str, label: str) -> Markup:
    """Text as it is, in a box that the keyboard can scroll."""
    return el("pre", text, tabindex="0", role="region", aria_label=label)


def notice(tone: str, title: str, *words: Child) -> Markup:
    """Something that wants attention."""
    return el("div", el("strong", title), " ", join(*words), class_=f"notice {tone}", role="group")
