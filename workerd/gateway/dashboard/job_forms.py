"""The forms that enqueue a job, change one that waits, and retry an ended one with other vars."""

from __future__ import annotations

from workerd.document_types import Document
from workerd.errors import HandlerNotFound
from workerd.gateway.dashboard.components import Child, Markup, card, el, join, notice, path, select
from workerd.gateway.dashboard.forms import fields, moment_option, option
from workerd.gateway.dashboard.jobs import state_badge
from workerd.gateway.dashboard.pages import PageQuery, View
from workerd.job import ENDED, Status
from workerd.operations import handlers, jobs
from workerd.operations.access import Tx
from workerd.redaction import Redaction
from workerd.signature import Signature

FIELDS = ("handler",)
"""Query parameters of the form to enqueue."""


async def enqueue(query: PageQuery) -> View:
    """The form that enqueues a job: first its handler, then the fields of its signature."""
    name, config = query.get("handler"), query.gateway.config

    def work(tx: Tx) -> tuple[list[str], tuple[Signature | None, Redaction] | None]:
        known = [handler["name"] for handler in handlers.list_(tx, config) if handler["known"]]
        if name and name not in known:
            raise HandlerNotFound(name, known)
        return known, (handlers.signature_of(tx, name), query.gateway.rules.of(tx, name)) if name else None

    known, found = await query.gateway.backend.read(work)
    choose = el(
        "form",
        select("handler", "Handler", [(one, one) for one in known], name),
        el("button", "Choose", class_=None if name else "main"),
        action="/ui/enqueue",
        class_="filters",
    )
    form = None if found is None else _enqueue_form(name, *found)
    return View("Enqueue", "/ui/jobs", join(_crumbs("Enqueue"), el("h1", "Enqueue a job"), choose, form))


def _crumbs(*rest: Child) -> Markup:
    return el("p", el("a", "Jobs", href="/ui/jobs"), [(" / ", one) for one in rest], class_="crumbs")


def _enqueue_form(handler: str, signature: Signature | None, redaction: Redaction) -> Markup:
    made = fields(signature, {}, redaction, others=True)
    return el(
        "form",
        el("input", type="hidden", name="handler", value=handler),
        card(
            f"Arguments of {handler}",
            el("div", made, class_="fields") if made else el("p", "It takes no arguments.", class_="empty"),
            note=None if signature is not None else "its signature is not known yet",
        ),
        card(
            "Options",
            el(
                "div",
                option("delay", "Delay", placeholder="such as 10m"),
                moment_option("run_at", "or due at"),
                option("priority", "Priority", is_json=True, placeholder="0; smaller runs first"),
                option("group", "Group"),
                option("unique_key", "Unique key"),
                option("expires", "Expires", placeholder="such as 1h"),
                class_="fields",
            ),
        ),
        el(
            "p",
            el("button", "Enqueue", type="button", data_send="/jobs", data_to="/ui/jobs/", class_="main"),
            class_="actions",
        ),
        class_="form",
    )


async def edit(query: PageQuery) -> View:
    """The form that changes a job that waits, or the vars of one that has ended for its retry."""
    key, gateway = query.key, query.gateway

    def work(tx: Tx) -> tuple[Document, Signature | None, Redaction]:
        job = jobs.get(tx, key, gateway.rules)
        handler = job["handler"]
        return job, handlers.signature_of(tx, handler), gateway.rules.of(tx, handler)

    job, signature, redaction = await gateway.backend.read(work)
    page = path("ui", "jobs", job["id"])
    link = el("a", job["id"], href=page, class_="id")
    retried = job["status"] in ENDED
    title = "Edit and retry" if retried else "Edit"
    head = join(
        _crumbs(link, title), el("h1", f"{title} {job['handler']} ", state_badge(job)),
        _form(job, signature, redaction, page, retried=retried),
    )  # fmt: skip
    return View(f"{title} {job['handler']}", "/ui/jobs", head)


def _form(
    job: Document, signature: Signature | None, redaction: Redaction, page: str, *, retried: bool
) -> Markup:
    if job["status"] == Status.INPROGRESS or not isinstance(job["vars"], dict):
        return notice("warn", "It cannot be changed:", "it is running, or its vars are not a JSON object.")
    made = fields(signature, job["vars"], redaction, others=True)
    options = el(
        "div",
        option("priority", "Priority", is_json=True, value=str(job["priority"])),
        moment_option("run_at", "Due at", job["run_at"]),
        option("group", "Group", value=job["group"] or ""),
        class_="fields",
    )
    target = path("jobs", job["id"])
    send = el(
        "button",
        "Retry with these" if retried else "Save",
        type="button",
        data_send=f"{target}/retry" if retried else target,
        data_method="POST" if retried else "PATCH",
        data_changed=True,
        data_to=page,
        class_="main",
    )
    note = "only what you change is sent; an emptied field is removed"
    return el(
        "form",
        card("Arguments", el("div", made, class_="fields") if made else "It takes no arguments.", note=note),
        None if retried else card("Options", options),
        el("p", send, el("a", "Back", href=page), class_="actions"),
        class_="form",
    )
