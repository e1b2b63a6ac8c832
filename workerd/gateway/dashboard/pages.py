"""The frame around every page, the parameters of a page, and the static files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files
from urllib.parse import urlencode

from starlette.responses import Response

from workerd.gateway.dashboard.components import Markup, el, join
from workerd.gateway.params import parsed_id
from workerd.gateway.path_prefix import below
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.roles import EVERYBODY, Access, Caller
from workerd.gateway.state import GatewayState

PAGE_SIZE = 50
"""Rows of a list."""
MAX_COUNT = 1_000
"""Higher numbers of jobs are shown as "1,000+"."""


@dataclass(frozen=True)
class PageQuery:
    """One request for a page. `item_id`: the id in the path; `caller`: of whom only the role counts."""

    gateway: GatewayState
    query: Mapping[str, str]
    item_id: str
    caller: Caller

    def get(self, name: str) -> str:
        """The value of a filter, "" if it is not set."""
        return self.query.get(name, "").strip()

    @property
    def after(self) -> str | None:
        """The cursor of the list, None for its first page."""
        return self.get("after") or None

    def filters(self, *names: str) -> str:
        """The set filters, URL-encoded."""
        return urlencode([(name, self.get(name)) for name in names if self.get(name)])

    @property
    def may_act(self) -> bool:
        """Whether the caller may change anything: what one may not do is not shown."""
        return self.caller.may(Access.ACT)

    @property
    def key(self) -> bytes:
        """The id in the path. Raises HTTPProblem 404 for text that is no id."""
        return parsed_id(self.item_id)


CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NAVIGATION = (
    ("/", "Overview"),
    ("/ui/jobs", "Jobs"),
    ("/ui/requests", "Requests"),
    ("/ui/errors", "Errors"),
    ("/ui/handlers", "Handlers"),
    ("/ui/limits", "Limits"),
    ("/ui/schedules", "Schedules"),
    ("/ui/audit", "Audit"),
)
"""Paths and names."""
FOR_OPERATORS = frozenset({"/ui/audit"})
"""Those of NAVIGATION that others may not see."""


@dataclass(frozen=True)
class View:
    """The content of a page.

    `section`: the path of its navigation entry, "" for a page without the banner; `head` is rendered once, so
    that updates do not touch its form; `parts` are updated live, by element id.
    """

    title: str
    section: str
    head: Markup
    parts: Mapping[str, Markup] = field(default_factory=dict)


@dataclass(frozen=True)
class Asset:
    """A static file of the package."""

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


def _asset_url(name: str) -> str:
    return f"/ui/static/{name}?v={ASSETS[name].version}"


def jobs_path(**filters: str) -> str:
    """The path of the list of jobs with these filters."""
    return f"/ui/jobs?{urlencode(filters)}"


def page_response(
    view: View,
    node_name: str,
    *,
    prefix: str = "",
    live: str | None = None,
    logged_in: bool = False,
    caller: Caller = EVERYBODY,
    status: int = 200,
) -> Response:
    """The view as a whole page.

    `prefix`: the path of a proxy below which its links lead; `live`: the page to subscribe to; `logged_in`:
    show "Log out"; `caller`: who sees it.
    """
    page = join(
        Markup("<!doctype html>"),
        el(
            "html", _head(view, node_name), _body(view, node_name, prefix, live, logged_in, caller), lang="en"
        ),
    )
    return Response(below(prefix, page), status_code=status, media_type="text/html", headers=HEADERS)


def _head(view: View, node_name: str) -> Markup:
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{view.title} · {node_name} · workerd"),
        el("link", rel="icon", href=_asset_url("icon.svg"), type="image/svg+xml"),
        el("link", rel="stylesheet", href=_asset_url("workerd.css")),
        el("script", src=_asset_url("workerd.js"), defer=True),
    )


def _body(
    view: View, node_name: str, prefix: str, live: str | None, logged_in: bool, caller: Caller
) -> Markup:
    main = el(
        "main",
        view.head,
        [el("div", part, id=name, class_="part") for name, part in view.parts.items()],
        id="main",
        tabindex="-1",
    )
    return el(
        "body",
        el("a", "Skip to content", href="#main", class_="skip"),
        _banner(view, node_name, live, logged_in, caller) if view.section else None,
        main,
        el("p", id="toast", class_="toast", role="status", aria_live="polite"),
        _confirm_dialog(),
        _values_dialog(),
        data_live=live,
        data_prefix=prefix or None,
    )


def _banner(view: View, node_name: str, live: str | None, logged_in: bool, caller: Caller) -> Markup:
    links = [
        el("a", name, href=href, aria_current="page" if href == view.section else None)
        for href, name in NAVIGATION
        if caller.may(Access.ACT if href in FOR_OPERATORS else Access.READ)
    ]
    return el(
        "header",
        el("a", el("span", class_="mark", aria_hidden="true"), "workerd", href="/", class_="brand"),
        el("nav", links, aria_label="Main"),
        _search_box() if caller.may(Access.READ) else None,
        el(
            "p",
            el("span", node_name, class_="node"),
            el("span", f"{caller.name} · {caller.role}", class_="who") if logged_in else None,
            el("span", "live", id="pulse", class_="pulse", title="This page updates automatically")
            if live
            else None,
            el("button", "Log out", type="button", data_post="/ui/logout", data_to="/login", class_="plain")
            if logged_in
            else None,
            class_="session",
        ),
        class_="banner",
    )


def _search_box() -> Markup:
    label = "Search: the id of a job or request, a fingerprint, a handler, or KEY=VALUE of meta"
    return el(
        "form",
        el(
            "input", type="search", name="q", required=True, maxlength="191", autocomplete="off",
            placeholder="Id, handler, key=value …", aria_label=label, title=label,
        ),
        action="/ui/search",
        role="search",
        class_="search",
    )  # fmt: skip


def _values_dialog() -> Markup:
    """Where values are shown that the page redacts or cuts short."""
    return el(
        "dialog",
        el("h2", "Values", id="values-title"),
        el("pre", id="values-text", tabindex="0", role="region", aria_label="Values"),
        el("form", el("p", el("button", "Close", class_="main"), class_="choice"), method="dialog"),
        id="values",
        aria_labelledby="values-title",
    )


def _confirm_dialog() -> Markup:
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
        id="confirm",
        aria_labelledby="question",
    )


def problem_page(
    problem: HTTPProblem, node_name: str, *, prefix: str, logged_in: bool, caller: Caller = EVERYBODY
) -> Response:
    """An error as a page."""
    title = HTTPStatus(problem.status).phrase
    view = View(title, "/ui", join(el("h1", title), el("p", problem.detail, class_="lead")))
    return page_response(
        view, node_name, prefix=prefix, logged_in=logged_in, caller=caller, status=problem.status
    )
