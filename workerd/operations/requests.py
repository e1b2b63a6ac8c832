"""Submit, look up, list and cancel requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from workerd import documents
from workerd.clock import SECOND
from workerd.config.model import Config
from workerd.config.workflow_config import WorkflowJob
from workerd.document_types import Document, Enqueued
from workerd.documents import json_value
from workerd.errors import InvalidValue
from workerd.job import Status, id_text
from workerd.job_spec import any_json, checked_name, params_json
from workerd.operations import audit
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.operations.repeats import KEY_USED
from workerd.operations.rules import UNREDACTED, Rules
from workerd.store import links, queries, requests, signals
from workerd.store.base import Tx
from workerd.store.columns import JobRow, RequestRow
from workerd.workflow import REQUEST_ENDED, Graph, RequestStatus, decode, graph_of, of_cycle

FAILED_LATELY_S = 15 * 60
"""What `workerd_requests_failed` counts; alerts fire for as long."""


MAX_SIGNALS = 20
"""Signals of a large graph that are offered."""


class RequestPage(NamedTuple):
    """A page of a list; `next`: the cursor of the following one, None at the end."""

    requests: list[Document]
    next: str | None


@dataclass(frozen=True)
class RequestDetails:
    """A request with its jobs; `graph`: all jobs of its workflow, as configured now until it is picked up.

    `signals`: the names that its jobs wait for now.
    """

    request: Document
    graph: tuple[WorkflowJob, ...]
    signals: list[str]


def check_workflow(config: Config, workflow: str) -> None:
    """Raises InvalidValue with the known workflows if this is not one of them."""
    if workflow not in config.workflows:
        known = ", ".join(sorted(config.workflows))
        hint = f"known are: {known}" if known else "the configuration has no [workflows.NAME]"
        raise InvalidValue(f'Workflow "{workflow}" not found; {hint}.')


def checked_params(config: Config, params: Mapping[str, Any] | None) -> bytes:
    """A request's params as JSON. Raises InvalidValue."""
    return params_json(params or {}, config.gateway.max_body)


def submit(
    tx: Tx, workflow: str, params: bytes, request_id: bytes | None = None, traceparent: str | None = None
) -> Enqueued:
    """Submit a request; an existing one with this id is left as it is.

    `traceparent`: of the span that its jobs come from.
    """
    done = requests.submit(tx, workflow, params, request_id, traceparent=traceparent)
    return Enqueued(id_text(done.id), done.created)


def check_repeat(tx: Tx, request_id: bytes, workflow: str, params: bytes) -> None:
    """See that the request whose id is derived from a key is that of the first call. Raises InvalidValue."""
    row = requests.row_of(tx, request_id)
    if row.workflow != workflow or json_value(row.params) != json_value(params):
        raise InvalidValue(KEY_USED)


def get(tx: Tx, request_id: bytes, rules: Rules = UNREDACTED) -> Document:
    """A request with its jobs. Raises NotFound."""
    row, jobs = requests.get(tx, request_id)
    return document(tx, row, jobs, rules)


def document(tx: Tx, row: RequestRow, jobs: Sequence[JobRow], rules: Rules) -> Document:
    """A request that was read with its jobs."""
    all_read = len(jobs) < requests.MAX_JOBS_READ
    there = {job.handler for job in jobs} if all_read else None
    redaction = rules.of_request(tx, _handlers(row, lambda: there))
    return documents.request(row, redaction, [(job, rules.of(tx, job.handler)) for job in jobs])


def document_alone(tx: Tx, row: RequestRow, rules: Rules) -> Document:
    """A request that was read with its graph, but without its jobs."""
    redaction = rules.of_request(tx, _handlers(row, lambda: requests.job_handlers(tx, row.id)))
    return documents.request(row, redaction)


def _handlers(row: RequestRow, read: Callable[[], set[str] | None]) -> set[str] | None:
    """The handlers of its jobs, of those that its graph has still to make too; None if not all are known.

    `read`: returns those of the jobs that it has by now, None if they are not known.
    """
    graph = _graph(row)
    if graph is None or graph.linked or row.pending == "fill":
        return None
    of_jobs = read()
    return None if of_jobs is None else of_jobs | {job.handler for job in graph.all_jobs}


def get_with_graph(tx: Tx, request_id: bytes, rules: Rules = UNREDACTED) -> tuple[Document, Graph | None]:
    """A request with its jobs, and the graph that they follow once it has started. Raises NotFound."""
    row, jobs = requests.get(tx, request_id)
    return document(tx, row, jobs, rules), _graph(row)


def details(tx: Tx, config: Config, request_id: bytes, rules: Rules = UNREDACTED) -> RequestDetails:
    """A request as an operator inspects it. Raises NotFound."""
    row, jobs = requests.get(tx, request_id)
    graph = _graph(row) if row.steps is not None else config.workflows.get(row.workflow)
    shown = document(tx, row, jobs, rules)
    if graph is None:
        return RequestDetails(shown, (), [])
    whole = graph if isinstance(graph, Graph) else graph_of(graph)
    open_ = _open_signals(whole, jobs)
    if whole.linked:
        open_ += links.open_signals(tx, request_id, MAX_SIGNALS)
    return RequestDetails(shown, whole.all_jobs, open_)


def _open_signals(graph: Graph, jobs: Sequence[JobRow]) -> list[str]:
    """The signals that its jobs wait for now."""
    waiting = {job.name for job in jobs if job.status in (Status.SCHEDULED, Status.NEW)}
    return sorted({job.signal for job in graph.all_jobs if job.signal and job.name in waiting})


def signal(
    tx: Tx, actor: Actor, config: Config, request_id: bytes, name: str, payload: object = None
) -> None:
    """Give a signal to a request; the first of a name counts, and one that comes early is kept.

    Raises NotFound, Conflict if the request has ended or the signal was given before, InvalidValue for a name
    that no job of it waits for, or a payload that is no JSON.
    """
    checked_name("signal", name)
    encoded = any_json("payload", payload, config.gateway.max_body)
    signals.deliver(tx, request_id, name, encoded, actor.name, config.workflows)
    audit.record(tx, actor, Action.SIGNAL, id_text(request_id), {"signal": name})


def _graph(row: RequestRow) -> Graph | None:
    try:
        return of_cycle(decode(row.steps), row.cycle) if row.steps is not None else None
    except ValueError:
        return None


def results(tx: Tx, request_id: bytes, rules: Rules = UNREDACTED) -> Document:
    """What its last jobs returned, by name: those that no other job needs. Bytes are `{"base64": …}`.

    Raises NotFound.
    """
    row, jobs = requests.get(tx, request_id)
    graph = _graph(row)
    needed = {need for job in graph.jobs for need in job.needs} if graph is not None else set()
    if graph is not None and graph.linked:
        inner = links.needed(tx, [job.id for job in jobs])
        needed |= {job.name for job in jobs if job.id in inner and job.name}
    found = {}
    for job in jobs:
        name = job.name or job.handler
        if job.payload_type is not None and name.partition("/")[0] not in needed:
            shown = documents.job(queries.get(tx, job.id), rules.of(tx, job.handler))
            encoded = shown["payload_base64"]
            found[name] = shown["payload"] if encoded is None else {"base64": encoded}
    return found


def list_(
    tx: Tx,
    *,
    status: RequestStatus | None = None,
    workflow: str | None = None,
    since: int | None = None,
    limit: int = 50,
    after: str | None = None,
    rules: Rules = UNREDACTED,
) -> RequestPage:
    """Requests, newest first, without their jobs. `since`: microseconds of store time.

    Neither graphs nor jobs are read for a list, so that what any handler redacts is redacted in all of them.
    """
    page = requests.list_(tx, status=status, workflow=workflow, since=since, limit=limit, after=after)
    redaction = rules.of_request(tx, None)
    return RequestPage([documents.request(row, redaction) for row in page.rows], page.next)


def failed_lately(tx: Tx) -> dict[str, int]:
    """Requests that failed within FAILED_LATELY_S, by workflow."""
    return requests.failed_since(tx, tx.now - FAILED_LATELY_S * SECOND)


def reopening_note(tx: Tx, job_id: bytes) -> str | None:
    """What a retry of this job by hand does to its ended request besides, None if nothing."""
    request_id = queries.request_of(tx, job_id)
    row = requests.find(tx, request_id) if request_id is not None else None
    if row is None or row.status not in REQUEST_ENDED:
        return None
    graph = _graph(row)
    again = "; its finally runs again when it ends" if graph is not None and graph.final else ""
    return f"Request {id_text(row.id)} is reopened{again}."


def cancel(tx: Tx, actor: Actor, request_id: bytes) -> Literal["ended", "asked"]:
    """Cancel a request: at once, or when its running jobs have ended. Raises NotFound, Conflict."""
    result = cast('Literal["ended", "asked"]', requests.cancel(tx, request_id))
    audit.record(tx, actor, Action.CANCEL, id_text(request_id), {"kind": "request"})
    return result


def ended(tx: Tx, request_id: bytes) -> bool:
    """Whether the request has ended. Raises NotFound."""
    return requests.ended(tx, request_id)


def ended_of(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    """Which of these requests have ended."""
    return requests.ended_of(tx, ids)
