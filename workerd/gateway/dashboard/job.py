"""The page of one job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from workerd import documents
from workerd.document_types import Document
from workerd.gateway.dashboard.audit import acts_card
from workerd.gateway.dashboard.components import (
    DASH,
    TRUNCATED,
    Child,
    Markup,
    button,
    card,
    code,
    el,
    facts,
    join,
    json_text,
    kib,
    microseconds,
    moment,
    notice,
    number,
    path,
    progress,
    reveal_buttons,
    seconds,
    short_id,
    table,
    when,
)
from workerd.gateway.dashboard.jobs import state_badge
from workerd.gateway.dashboard.pages import PageQuery, View
from workerd.job import LIVE, AttemptRef, Status
from workerd.operations import audit
from workerd.operations import jobs as operations
from workerd.operations.access import Tx
from workerd.operations.jobs import JobDetails
from workerd.operations.logs import JobLog
from workerd.operations.why import explain
from workerd.runtime.limits import resident_bytes
from workerd.text import exit_text, size_text

PREVIEW_BYTES = 8_000
"""How much of a payload a page shows."""
HEX_PREVIEW_BYTES = 256
LOG_PREVIEW_CHARS = 32_000
"""How much of a log a page shows: the newest of it."""
STACKS_CHARS = 256 * 1024
"""Of the errors and stacks of all attempts that a page shows together."""


async def job(query: PageQuery) -> View:
    """One job."""
    job_id, config = query.key, query.gateway.config
    pools = (await query.gateway.backend.supervisor.status()).get("pools") or {}

    def work(tx: Tx) -> tuple[JobDetails, list[str], list[Document]]:
        details = operations.details(tx, job_id, PREVIEW_BYTES, query.gateway.rules)
        reasons = explain(tx, config, job_id, pools)[1] if details.job["status"] in LIVE else []
        return details, reasons, audit.of_job(tx, details.job) if query.may_act else []

    details, reasons, acts = await query.gateway.backend.read(work)
    job = details.job
    live = None
    if job["status"] == Status.INPROGRESS:
        live = await query.gateway.backend.supervisor.live_log(AttemptRef(job_id, job["attempt"]))
    running = Running.of(details, pools) if job["status"] == Status.INPROGRESS else None
    return View(
        f"Job {job['handler']}",
        "/ui/jobs",
        el("p", el("a", "Jobs", href="/ui/jobs"), " / ", el("span", job["id"], class_="id"), class_="crumbs"),
        {
            "head": _head(details, query.may_act),
            "error": _error(job),
            "why": _why(job, reasons),
            "details": _facts(details, running),
            "live-log": _live_log(job, live),
            "attempts": _attempts(details),
            "data": _data(details, query.may_act),
            "acts": acts_card(acts),
        },
    )


def _head(details: JobDetails, may_act: bool) -> Markup:
    job = details.job
    actions = _actions(details) if may_act else None
    if details.cancel_requested and job["status"] in LIVE:
        actions = el("span", "cancellation requested", class_="sub")
    return el(
        "div",
        el("h1", job["handler"], " ", state_badge(job)),
        el("p", actions, class_="actions") if actions else None,
        class_="title",
    )


def _actions(details: JobDetails) -> Markup:
    job = details.job
    form = path("ui", "jobs", job["id"], "edit")
    if job["status"] not in LIVE:
        question = "Retry this job? Its request is reopened, and its finally runs again when it ends."
        confirm = question if job["request_id"] else None
        return join(
            el("a", "Edit and retry", href=form),
            button("Retry", path("jobs", job["id"], "retry"), confirm=confirm, target="this job"),
        )
    cancel = button(
        "Cancel", path("jobs", job["id"], "cancel"), confirm="Cancel this job?", target="this job"
    )
    return join(el("a", "Edit", href=form) if job["status"] != Status.INPROGRESS else None, cancel)


def _error(job: Document) -> Markup:
    if not job["error"] or job["status"] == Status.COMPLETED:
        return Markup("")
    group = job["fingerprint"] and el("a", "All in this group", href=path("ui", "errors", job["fingerprint"]))
    return notice("bad", f"{job['reason'] or 'error'}:", job["error"], " ", group)


def _why(job: Document, reasons: list[str]) -> Markup:
    if not reasons:
        return Markup("")
    title = "Running" if job["status"] == Status.INPROGRESS else "Why it waits"
    sentences = el("ul", [el("li", reason) for reason in reasons]) if len(reasons) > 1 else reasons[0]
    return notice("info", f"{title}:", sentences)


@dataclass(frozen=True)
class Running:
    """What is known of a running attempt, in words; `deadline` and `memory` are None if that is elsewhere."""

    since: str
    deadline: str | None
    memory: str | None

    @classmethod
    def of(cls, details: JobDetails, pools: Mapping[str, Document]) -> Running:
        """From this node's pools if it runs here, else from the store."""
        workers = [worker for pool in pools.values() for worker in pool.get("workers") or ()]
        for worker in workers:
            if worker.get("job") == details.job["id"]:
                now, end = time.monotonic(), worker.get("deadline")
                memory = resident_bytes(worker["pid"])
                since = seconds(max(0.0, now - worker["since"]))
                return cls(since, _deadline(end, now), size_text(memory) if memory else None)
        given_s = None if details.deadline_ms is None else details.deadline_ms / 1000
        deadline = None if given_s is None else f"{seconds(given_s)} after its start" if given_s else "none"
        return cls(seconds(details.running_s), deadline, None)

    @property
    def facts(self) -> tuple[tuple[str, Child], ...]:
        """As the page lists them."""
        return ("Running for", self.since), ("Deadline", self.deadline), ("Memory now", self.memory)


def _deadline(end: float | None, now: float) -> str:
    if end is None:
        return "none"
    return f"in {seconds(end - now)}" if end > now else f"over for {seconds(now - end)}"


def _facts(details: JobDetails, running: Running | None) -> Markup:
    job = details.job
    request = job["request_id"]
    return card(
        "Details",
        facts(
            [
                ("Created", when(job["created_at"])),
                ("Due", when(job["run_at"])),
                ("Expires", when(job["expires_at"]) if job["expires_at"] and not job["started_at"] else None),
                ("Started", when(job["started_at"])),
                ("Finished", when(job["finished_at"])),
                ("Queue time", microseconds(details.queue_us[job["attempt"]])),
                *(() if running is None else running.facts),
                ("Run time", microseconds(job["run_us"])),
                ("CPU time", microseconds(job["cpu_us"])),
                ("Peak memory", kib(job["max_rss_kib"])),
                ("Progress", progress(job["progress"], job["note"])),
                ("Attempt", number(job["attempt"])),
                ("Node", f"{job['node']}, process {job['pid']}" if job["pid"] else job["node"]),
                ("Priority", number(job["priority"]) if job["priority"] else None),
                ("Unique key", job["unique_key"]),
                ("Group", job["group"]),
                ("Request", request and el("a", short_id(request), href=path("ui", "requests", request))),
                ("Name in request", job["name"]),
            ]
        ),
    )


def _process_exit(attempt: Document) -> str:
    """How the process of an attempt ended, if it died."""
    if attempt["exit_signal"]:
        return exit_text(-attempt["exit_signal"])
    return DASH if attempt["exit_code"] is None else exit_text(attempt["exit_code"])


def _attempts(details: JobDetails) -> Markup:
    attempts = details.job["attempts"]
    rows = [
        (
            number(attempt["attempt"]),
            state_badge(attempt),
            moment(attempt["started_at"] or attempt["claimed_at"]),
            microseconds(details.queue_us[attempt["attempt"]]),
            microseconds(attempt["run_us"]),
            microseconds(attempt["cpu_us"]),
            kib(attempt["max_rss_kib"]),
            _process_exit(attempt),
            f"{attempt['node']}/{attempt['pid']}" if attempt["pid"] else attempt["node"] or DASH,
        )
        for attempt in attempts
    ]
    headers = (
        "Attempt", "State", "Started", "Queue time", "Run time", "CPU time", "Peak memory", "Process exit",
        "Node/PID",
    )  # fmt: skip
    return card(
        "Attempts",
        table("Attempts, oldest first", headers, rows, "The job has not run yet."),
        _stacks(details.job),
        [_log(details.job, log) for log in details.logs],
    )


def _live_log(job: Document, live: Document | None) -> Markup:
    """What the running attempt has printed so far, if it runs on this node."""
    if job["status"] != Status.INPROGRESS:
        return Markup("")
    if live is None:
        return card("Log", el("p", f"The job runs on {job['node']}; its log is live there.", class_="sub"))
    text = live["text"][-LOG_PREVIEW_CHARS:]
    return card("Log", code(text or "Nothing yet.", "Log"), note="live, of this node")


def _log(job: Document, log: JobLog) -> Markup:
    link = el("a", "whole log", href=f"{path('jobs', job['id'], 'log')}?attempt={log.attempt}")
    text = log.text
    if len(text) > LOG_PREVIEW_CHARS:
        text = "…\n" + text[-LOG_PREVIEW_CHARS:]
    return el(
        "details",
        el("summary", f"Log of attempt {log.attempt}"),
        code(text, f"Log of attempt {log.attempt}"),
        el("p", link, class_="sub"),
        open=log.attempt == job["attempt"],
        id=f"log-{log.attempt}",
    )


def _stacks(job: Document) -> list[Markup]:
    """The newest first, as many as there is room for: while a page is escaped, the gateway answers nobody."""
    attempts = [one for one in reversed(job["attempts"]) if one["error"] or one["stack"]]
    shown: list[Markup] = []
    chars = 0
    for attempt in attempts:
        chars += len(attempt["error"] or "") + len(attempt["stack"] or "")
        if shown and chars > STACKS_CHARS:
            break
        shown.append(_stack(attempt))
    if len(shown) < len(attempts) or len(job["attempts"]) > operations.MAX_STACKS:
        link = el("a", "the job as JSON", href=path("jobs", job["id"]))
        shown.append(el("p", "Errors and stacks of earlier attempts are in ", link, ".", class_="sub"))
    return shown


def _stack(attempt: Document) -> Markup:
    title = f"Attempt {attempt['attempt']}"
    return el(
        "details",
        el("summary", f"{title}: ", el("span", (attempt["error"] or "stack")[:STACKS_CHARS], class_="error")),
        code(
            (attempt["stack"] or attempt["error"] or "")[:STACKS_CHARS],
            f"Stack of attempt {attempt['attempt']}",
        ),
        open=attempt["status"] != Status.RETRY,
        id=f"stack-{attempt['attempt']}",
    )


def _data(details: JobDetails, may_act: bool) -> Markup:
    job = details.job
    shown = {"Vars": job["vars"]}
    shown |= {
        title: job[name]
        for title, name in (("Meta", "meta"), ("Saved state", "state"))
        if job[name] is not None
    }
    sections: list[Child] = []
    for title, value in shown.items():
        sections += [el("h3", title), code(json_text(value), title)]
    payload = None
    if details.payload is not None:
        data, size, kind = details.payload
        payload = _payload_text(data, size, kind)
        link = el("a", "download", href=path("jobs", job["id"], "payload"), download=True)
        sections += [
            el("h3", "Payload"),
            el("p", f"{kind}, {size_text(size)} · ", link, class_="sub"),
            code(payload, "Payload"),
        ]
    reveal = reveal_buttons(path("jobs", job["id"]), [*shown.values(), payload], may_act)
    return card("Data", sections, note=reveal)


def _payload_text(data: bytes, size: int, kind: str) -> str:
    if kind == "json" and len(data) == size:
        return json_text(documents.json_value(data))
    if kind == "json":
        return data.decode("utf-8", "replace") + TRUNCATED
    return data[:HEX_PREVIEW_BYTES].hex(" ") + (" …" if size > HEX_PREVIEW_BYTES else "")
