"""The frame around every page, what a page is asked for, and its static files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from urllib.parse import urlencode

from starlette.responses import Response

from workerd.gateway.dashboard.components import Markup, el, join
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import GatewayState
from workerd.job import parse_id

ROWS = 50
"""Rows of a list on one page."""
CAP = 1_000
"""Counts on a page are followed up to here."""


@dataclass(frozen=True)
class PageQuery:
    """One look at a page. `ident`: what the path names."""

    gateway: GatewayState
    query: Mapping[str, str]
    ident: str = ""

    def get(self, name: str) -> str:
        """A filter, "" if it is not set."""
        return self.query.get(name, "").strip()

    @property
    def after(self) -> str | None:
        """The cursor."""
        return self.get("after") or None

    def filters(self, *names: str) -> str:
        """Those of the filters that are set, URL-encoded."""
        return urlencode([(name, self.get(name)) for name in names if self.get(name)])

    @property
    def key(self) -> bytes:
        """The id that the path names. Raises Problem 404."""
        try:
            return parse_id(self.ident)
        except ValueError as error:
            raise HTTPProblem(404, f"There is nothing with this id: {error}.") from None


POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NAVIGATION = (
    ("/", "Overview"),
    ("/ui/jobs", "Jobs"),
    ("/ui/requests", "Requests"),
    ("/ui/handlers", "Handlers"),
    ("/ui/schedules", "Schedules"),
)


@dataclass(frozen=True)
class View:
    """What a page shows. `head` stands still, so that nobody's typing is lost; `parts` are live, by id."""

    title: str
    place: str
    head: Markup
    parts: Mapping[str, Markup] = field(default_factory=dict)


@dataclass(frozen=True)
class Asset:
    """A file of the package that the browser loads."""

    data: bytes
    media_type: str
    version: str


def _asset(name: str, media_type: str) -> Asset:
    data = (files("workerd.gateway.dashboard") / "static" / name).read_bytes()
    return Asset(data, media_type, hashlib.blake2b(data, digest_size=6).hexdigest())


ASSETS = {
    "workerd.css": _asset("workerd.css", "text/css"),
    "workerd.js": _asset("workerd.js", "text/javascript"),
    "icon.svg": _asset("icon.svg", "image/svg+xml"),
}


def _url(name: str) -> str:
    return f"/ui/static/{name}?v={ASSETS[name].version}"


def respond(view: View, node: str, *, live: str | None, leave: bool, status: int = 200) -> Response:
    """The view as a whole page. `live`: what to subscribe to; `leave`: there is a session to leave."""
    page = join(
        Markup("<!doctype html>"),
        el("html", _head(view, node), _body(view, node, live, leave), lang="en"),
    )
    return Response(page, status_code=status, media_type="text/html", headers=HEADERS)


def _head(view: View, node: str) -> Markup:
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{view.title} · {node} · workerd"),
        el("link", rel="icon", href=_url("icon.svg"), type="image/svg+xml"),
        el("link", rel="stylesheet", href=_url("workerd.css")),
        el("script", src=_url("workerd.js"), defer=True),
    )


def _body(view: View, node: str, live: str | None, leave: bool) -> Markup:
    main = el(
        "main",
        view.head,
        [el("div", part, id=ident, class_="part") for ident, part in view.parts.items()],
        id="main",
        tabindex="-1",
    )
    return el(
        "body",
        el("a", "Skip to content", href="#main", class_="skip"),
        _banner(view, node, live, leave) if view.place else None,
        main,
        el("p", id="said", class_="said", role="status", aria_live="polite"),
        _dialog(),
        data_live=live,
    )


def _banner(view: View, node: str, live: str | None, leave: bool) -> Markup:
    links = [
        el("a", name, href=href, aria_current="page" if href == view.place else None)
        for href, name in NAVIGATION
    ]
    return el(
        "header",
        el("a", el("span", class_="mark", aria_hidden="true"), "workerd", href="/", class_="brand"),
        el("nav", links, aria_label="Main"),
        el(
            "p",
            el("span", node, class_="node"),
            el("span", "live", id="pulse", class_="pulse", title="This page updates by itself")
            if live
            else None,
            el("button", "Log out", type="button", data_post="/ui/logout", data_to="/login", class_="plain")
            if leave
            else None,
            class_="where",
        ),
        class_="banner",
    )


def _dialog() -> Markup:
    return el(
        "dialog",
        el(
            "form",
            el("p", id="question"),
            el("label", "Reason (optional)", el("input", name="reason", maxlength="500", autocomplete="off")),
            el(
                "p",
                el("button", "No", value="no", class_="plain", formnovalidate=True),
                el("button", "Yes", value="yes", class_="main"),
                class_="choice",
            ),
            method="dialog",
        ),
        id="ask",
        aria_labelledby="question",
    )


def problem(title: str, detail: str, node: str, status: int, leave: bool) -> Response:
    """An error as a page."""
    view = View(title, "/ui", join(el("h1", title), el("p", detail, class_="lead")))
    return respond(view, node, live=None, leave=leave, status=status)
