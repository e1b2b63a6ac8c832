"""Building blocks of pages: escaped elements, tables, cards, buttons, and formatted values."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from workerd.redaction import REDACTED
from workerd.text import seconds_text, size_text

VOID_ELEMENTS = frozenset({"input", "meta", "link", "br", "hr"})
MAX_JSON_CHARS = 20_000
"""Longer JSON values are truncated."""
DASH = "–"
"""Stands for a value that does not exist."""
TRUNCATED = "\n… truncated"


class Markup(str):
    """Text that is HTML already; `el` and `join` escape every other text."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]
Attribute = str | int | float | bool | None


def el(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """An element. `class_` is the attribute `class`, `data_id` is `data-id`; None and False are omitted."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(attribute if value is True else f'{attribute}="{escape(str(value))}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if name in VOID_ELEMENTS else f"{start}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """The children, escaped and concatenated."""
    return Markup("".join(map(_html, children)))


def _html(child: Child) -> str:
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
    """A path of the gateway; the parts are percent-encoded."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def seconds(value: float | None) -> str:
    """A duration in seconds."""
    return seconds_text(value) or DASH


def microseconds(value: int | None) -> str:
    """A duration in microseconds."""
    return DASH if value is None else seconds(value / 1e6)


def kib(value: int | None) -> str:
    """A size in KiB."""
    return size_text(value * 1024) if value else DASH


def number(value: float | None) -> str:
    """`1,234`, `12.3`, `0.25`."""
    if value is None:
        return DASH
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: int, cap: int) -> str:
    """A count that was not continued beyond `cap`."""
    return f"{cap:,}+" if value >= cap else f"{value:,}"


def moment(time: str | None) -> Child:
    """An RFC 3339 time; the page's script shows it as an age, with the time itself as a tooltip."""
    if time is None:
        return DASH
    return el("time", time[:19].replace("T", " "), datetime=time, class_="ago")


def when(time: str | None) -> Child:
    """As `moment`, shown in the reader's zone and with its age."""
    if time is None:
        return DASH
    return el("time", f"{time[:19].replace('T', ' ')} UTC", datetime=time, class_="ago full")


_TONES = {
    "completed": "good", "up": "good", "ok": "good", "ready": "good", "held": "good", "active": "good",
    "inprogress": "busy", "running": "busy", "starting": "busy", "reloading": "busy", "loading": "busy",
    "new": "wait", "scheduled": "wait", "queuing": "wait", "retry": "warn", "backoff": "warn",
    "failure": "bad", "failed": "bad", "quarantined": "bad", "lost": "bad", "away": "bad",
    "paused": "warn", "cancelled": "mute", "draining": "warn", "stopping": "warn",
    "resolved": "good", "muted": "mute",
}  # fmt: skip
_STATE_NAMES = {"inprogress": "running", "new": "waiting", "failure": "failed"}


def badge(state: str, detail: str | None = None) -> Markup:
    """A state, as a word and a color."""
    return el("span", state_name(state), f" · {detail}" if detail else None, class_=f"badge {tone(state)}")


def tone(state: str) -> str:
    """The CSS class that colors a state."""
    return _TONES.get(state, "mute")


def state_name(state: str) -> str:
    """A state as operators read it."""
    return _STATE_NAMES.get(state, state)


def json_text(value: Any) -> str:
    """A JSON value, indented; truncated above MAX_JSON_CHARS."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= MAX_JSON_CHARS else text[:MAX_JSON_CHARS] + TRUNCATED


MAX_LINE_CHARS = 300


def json_line(value: Any) -> str:
    """A JSON value on one line; truncated above MAX_LINE_CHARS."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_LINE_CHARS else text[:MAX_LINE_CHARS] + " …"


def short_id(text: str) -> str:
    """Both ends of an id: UUIDv7 of one list have the same beginning."""
    return f"{text[:8]}…{text[-6:]}"


def table(
    caption: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[Child]],
    empty: str,
    minor: Collection[str] = (),
) -> Markup:
    """A table, laid out as short cards on narrow screens.

    `empty` is shown instead if there are no rows; `minor`: columns that narrow screens leave out.
    """
    if not rows:
        return el("p", empty, class_="empty")
    head = el("tr", [el("th", header, scope="col", role="columnheader") for header in headers], role="row")
    body = [
        el(
            "tr",
            [
                el(
                    "td",
                    el("div", cell),
                    data_label=header,
                    role="cell",
                    class_=_class(cell, header in minor),
                )
                for header, cell in zip(headers, row, strict=True)
            ],
            role="row",
        )
        for row in rows
    ]
    # Explicit roles: laid out as cards, the elements would lose their table semantics.
    return el(
        "div",
        el(
            "table",
            el("caption", caption, class_="visually-hidden"),
            el("thead", head, role="rowgroup"),
            el("tbody", body, role="rowgroup"),
            role="table",
        ),
        class_="table",
    )


def _class(cell: Child, is_minor: bool) -> str | None:
    return "none" if cell in (DASH, "0") else "minor" if is_minor else None


def card(title: str, *children: Child, note: Child = None, wide: bool = False, ident: str = "") -> Markup:
    """A titled section."""
    heading = el("h2", title, id=ident or None)
    return el(
        "section",
        el("header", heading, el("p", note, class_="note") if note else None),
        children,
        class_="card wide" if wide else "card",
    )


def facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Names and values; None values are omitted."""
    shown = [(name, value) for name, value in pairs if value is not None]
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in shown], class_="facts")


def button(
    label: str,
    post: str,
    *,
    confirm: str | None = None,
    reason: bool = False,
    body: str | None = None,
    target: str = "",
) -> Markup:
    """A button that sends a POST request.

    `confirm`: a question to ask first; `reason`: the dialog has a field for a reason; `body`: JSON that is
    sent; `target`: what the action applies to, for screen readers.
    """
    return el(
        "button", label, type="button", data_post=post, data_confirm=confirm, data_reason=reason,
        data_body=body,
        aria_label=f"{label} {target}" if target else None,
    )  # fmt: skip


def reveal_buttons(source: str, shown: Sequence[Any], may_reveal: bool) -> Child:
    """Buttons that show values of a document in a dialog: those that a page cuts short, or redacts.

    `source`: the path of the document; `shown`: the values as the page has them.
    """
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in shown]
    whole = any(len(text) > MAX_JSON_CHARS or text.endswith(TRUNCATED) for text in texts)
    redacted = may_reveal and any(f'"{REDACTED}"' in text or text == REDACTED for text in texts)
    question = "Show the values that are redacted? The audit records it."
    return (
        join(
            el("button", "Show whole values", type="button", data_show=source) if whole else None,
            el("button", "Reveal", type="button", data_show=source, data_reveal=True, data_confirm=question)
            if redacted
            else None,
        )
        or None
    )


def pager(base: str, query: str, next_page: str | None, first: bool) -> Markup:
    """Links to the newest and to the next page; `query`: the filters, URL-encoded."""
    prefix = f"{base}?{query}&" if query else f"{base}?"
    return el(
        "nav",
        None if first else el("a", "« Newest", href=prefix[:-1]),
        el("a", "Older »", href=f"{prefix}after={next_page}", rel="next") if next_page else None,
        class_="pager",
        aria_label="Pages",
    )


def select(name: str, label: str, options: Sequence[tuple[str, str]], selected: str) -> Markup:
    """A labeled selection of a filter form."""
    return el(
        "label",
        label,
        el(
            "select",
            [el("option", text, value=value, selected=value == selected) for value, text in options],
            name=name,
        ),
    )


def error_text(error: str | None) -> Child:
    """An error in a table cell."""
    return el("span", error, class_="error") if error else DASH


def progress(fraction: float | None, note: object) -> Child:
    """What a job has reported: how far it is, from 0 to 1, and a text."""
    told = el("span", str(note), class_="sub") if note else None
    if fraction is None:
        return told
    percent = f"{100 * fraction:.0f}\u00a0%"
    bar = el("progress", percent, value=round(fraction, 4), max=1, aria_label="Progress")
    return join(bar, " ", percent, " ", told)


def code(text: str, label: str) -> Markup:
    """Preformatted text in a box that scrolls by keyboard."""
    return el("pre", text, tabindex="0", role="region", aria_label=label)


def notice(tone: str, title: str, *details: Child) -> Markup:
    """A highlighted message."""
    return el("div", el("strong", title), " ", join(*details), class_=f"notice {tone}", role="group")
