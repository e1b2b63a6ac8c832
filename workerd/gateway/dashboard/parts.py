"""What several pages are made of: tables, cards, lists of facts, buttons that act."""

from __future__ import annotations

from collections.abc import Sequence

from workerd.gateway.dashboard.html import Child, Markup, el, join


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
