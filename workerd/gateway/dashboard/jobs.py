"""The list of jobs, and one job with everything that is known of it."""

from __future__ import annotations

from typing import Any

from workerd import clock, documents
from workerd.gateway.admin import known_handlers
from workerd.gateway.dashboard import components
from workerd.gateway.dashboard.components import (
    Child,
    Markup,
    badge,
    button,
    card,
    code,
    el,
    facts,
    join,
    microseconds,
    moment,
    notice,
    number,
    pager,
    path,
    select,
    table,
)
from workerd.gateway.dashboard.overview import progress_bar
from workerd.gateway.dashboard.pages import ROWS, PageQuery, View
from workerd.gateway.problems import HTTPProblem
from workerd.job import ENDED, LIVE, Status, id_text
from workerd.store import queries
from workerd.store.base import Tx
from workerd.store.columns import JobRow
from workerd.store.queries import StoredJob
from workerd.text import exit_text

PREVIEW = 8_000
"""Bytes of a payload that a page shows."""
_SHOWN = (
    Status.NEW, Status.SCHEDULED, Status.INPROGRESS, Status.COMPLETED, Status.FAILURE, Status.CANCELLED
)  # fmt: skip
_NAMES = {Status.NEW: "waiting", Status.INPROGRESS: "running", Status.FAILURE: "failed"}


async def jobs(look: PageQuery) -> View:
    """Jobs by state, newest first, with filters."""
    wanted: dict[str, Any] = {
        "handler": look.get("handler") or None,
        "status": _status(look.get("status")),
        "since": _since(look.get("since")),
        "limit": ROWS,
        "after": look.after,
    }

    def work(tx: Tx) -> tuple[Any, list[str]]:
        return queries.list_(tx, **wanted), [row.name for row in known_handlers(tx, look.gateway.config)]

    page, names = await look.gateway.backend.read(work)
    rows = [_row(row) for row in page.rows]
    headers = ("Job", "Handler", "State", "Attempt", "Due", "Ended", "Run time", "Error")
    filters = look.filters("handler", "status", "since")
    listed = join(
        table("Jobs, newest first", headers, rows, "No job fits these filters."),
        pager("/ui/jobs", filters, page.next, first=look.after is None),
    )
    return View("Jobs", "/ui/jobs", join(el("h1", "Jobs"), _filters(look, names)), {"list": listed})


def _status(text: str) -> Status | None:
    try:
        return Status(text) if text else None
    except ValueError:
        raise HTTPProblem(422, f"There is no state {text!r}; choose one from the list.") from None


def _since(text: str) -> int | None:
    """A browser's field for a time names no offset: it is taken as UTC, as the page says."""
    if not text:
        return None
    if len(text) == len("2026-01-31T12:00"):
        text += ":00"
    return clock.from_rfc3339(
        text if text[-1] in "Zz" or "+" in text[10:] or "-" in text[10:] else text + "Z"
    )


def _filters(look: PageQuery, names: list[str]) -> Markup:
    chosen = look.get("handler")
    known = [*names, chosen] if chosen and chosen not in names else names
    return el(
        "form",
        select("handler", "Handler", [("", "all"), *((name, name) for name in known)], chosen),
        select(
            "status",
            "State",
            [("", "all"), *((str(s), _NAMES.get(s, str(s))) for s in _SHOWN)],
            look.get("status"),
        ),
        el(
            "label",
            "Due since (UTC)",
            el("input", type="datetime-local", name="since", value=look.get("since").rstrip("Zz")[:16]),
        ),
        el("button", "Show", class_="main"),
        el("a", "Reset", href="/ui/jobs") if look.filters("handler", "status", "since") else None,
        action="/ui/jobs",
        class_="filters",
        role="search",
        aria_label="Filters",
    )


def _row(row: JobRow) -> tuple[Child, ...]:
    ident = id_text(row.id)
    return (
        el("a", components.short_id(ident), href=path("ui", "jobs", ident), class_="id", title=ident),
        row.handler,
        badge(str(row.status), row.reason if row.reason not in (None, "ok", str(row.status)) else None),
        number(row.attempt),
        moment(row.run_at),
        moment(row.finished_at or row.ingested_at) if row.status in ENDED else "–",
        microseconds(row.run_us),
        el("span", row.error, class_="error") if row.error else "–",
    )


# -- one job


async def job(look: PageQuery) -> View:
    """One job."""
    key = look.key

    def work(tx: Tx) -> tuple[StoredJob, tuple[bytes, int, str] | None]:
        return queries.get(tx, key, payload=False), queries.preview(tx, key, PREVIEW)

    found, payload = await look.gateway.backend.read(work)
    row = found.row
    return View(
        f"Job {row.handler}",
        "/ui/jobs",
        el(
            "p",
            el("a", "Jobs", href="/ui/jobs"),
            " / ",
            el("span", id_text(row.id), class_="id"),
            class_="crumbs",
        ),
        {
            "head": _head(row),
            "trouble": _trouble(row),
            "facts": _facts(row),
            "attempts": _attempts(found.attempts),
            "documents": _documents(row, payload),
        },
    )


def _head(row: JobRow) -> Markup:
    ident = id_text(row.id)
    buttons = []
    if row.status in LIVE:
        asked = row.cancel_requested_at is not None
        buttons.append(
            el("span", "cancel was asked for", class_="sub")
            if asked
            else button("Cancel", f"/jobs/{ident}/cancel", ask="Cancel this job?", what="this job")
        )
    else:
        buttons.append(button("Retry", f"/jobs/{ident}/retry", what="this job"))
    return el(
        "div",
        el("h1", row.handler, " ", badge(str(row.status), row.reason if row.reason != "ok" else None)),
        el("p", buttons, class_="actions"),
        class_="title",
    )


def _trouble(row: JobRow) -> Markup:
    if not row.error or row.status == Status.COMPLETED:
        return Markup("")
    return notice("bad", f"{row.reason or 'error'}:", row.error)


def _queued(row: JobRow) -> str | None:
    if row.started_at is None:
        return None
    due = max(row.run_at or 0, row.created_at or 0)
    return components.seconds(max(0, row.started_at - due) / 1e6)


def _facts(row: JobRow) -> Markup:
    request = None if row.request_id is None else id_text(row.request_id)
    return card(
        "Facts",
        facts(
            [
                ("Created", moment(row.created_at)),
                ("Due", moment(row.run_at)),
                ("Started", moment(row.started_at)),
                ("Finished", moment(row.finished_at)),
                ("Waited", _queued(row)),
                ("Run time", microseconds(row.run_us)),
                ("CPU time", microseconds(row.cpu_us)),
                ("Peak memory", components.size(row.max_rss_kib * 1024) if row.max_rss_kib else "–"),
                ("Progress", _progress(row)),
                ("Attempt", number(row.attempt)),
                ("Node", f"{row.node}, process {row.pid}" if row.node and row.pid else row.node),
                ("Priority", number(row.priority) if row.priority else None),
                ("Unique key", row.unique_key),
                (
                    "Request",
                    request and el("a", components.short_id(request), href=path("ui", "requests", request)),
                ),
                ("Job of the request", row.name),
            ]
        ),
    )


def _progress(row: JobRow) -> Child:
    if row.progress is None and not row.note:
        return None
    return join(progress_bar(row.progress), el("span", row.note, class_="sub") if row.note else None)


def _exit(row: JobRow) -> str:
    """How the process ended, if it did."""
    if row.exit_signal:
        return exit_text(-row.exit_signal)
    return "–" if row.exit_code is None else exit_text(row.exit_code)


def _attempts(attempts: list[JobRow]) -> Markup:
    rows = [
        (
            number(row.attempt),
            badge(str(row.status), row.reason if row.reason not in (None, "ok", str(row.status)) else None),
            moment(row.started_at or row.claimed_at),
            _queued(row) or "–",
            microseconds(row.run_us),
            microseconds(row.cpu_us),
            components.size(row.max_rss_kib * 1024) if row.max_rss_kib else "–",
            _exit(row),
            f"{row.node}/{row.pid}" if row.node and row.pid else row.node or "–",
        )
        for row in attempts
    ]
    headers = (
        "Attempt",
        "State",
        "Started",
        "Waited",
        "Run time",
        "CPU",
        "Peak memory",
        "Process",
        "Node/pid",
    )
    return card(
        "Attempts",
        table("Attempts, oldest first", headers, rows, "It has not run yet."),
        [_stack(row) for row in reversed(attempts) if row.error or row.stack],
    )


def _stack(row: JobRow) -> Markup:
    label = f"Attempt {row.attempt}"
    return el(
        "details",
        el("summary", f"{label}: ", el("span", row.error or "stack", class_="error")),
        code(row.stack or row.error or "", f"Stack of attempt {row.attempt}"),
        open=row.status != Status.RETRY,
        id=f"stack-{row.attempt}",
    )


def _documents(row: JobRow, payload: tuple[bytes, int, str] | None) -> Markup:
    shown: list[Markup] = [
        el("h3", "Vars"),
        code(components.document(documents.json_value(row.vars)), "Vars"),
    ]
    if row.meta is not None:
        shown += [el("h3", "Meta"), code(components.document(documents.json_value(row.meta)), "Meta")]
    if payload is not None:
        data, size, kind = payload
        link = el("a", "download", href=f"/jobs/{id_text(row.id)}/payload", download=True)
        shown += [
            el("h3", "Payload"),
            el("p", f"{kind}, {components.size(size)} · ", link, class_="sub"),
            code(_payload_text(data, size, kind), "Payload"),
        ]
    return card("Data", shown)


def _payload_text(data: bytes, size: int, kind: str) -> str:
    if kind == "json" and len(data) == size:
        return components.document(documents.json_value(data))
    if kind == "json":
        return data.decode("utf-8", "replace") + "\n… cut here"
    return data[:256].hex(" ") + (" …" if size > 256 else "")
