"""Requests: submit, get, list, pick up, cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from workerd import workflow as wf
from workerd.config.workflow_config import WorkflowConfig
from workerd.errors import Conflict, InvalidValue, NotFound
from workerd.job import AttemptRef, Status, id_text, new_id
from workerd.store import columns, intervals
from workerd.store.base import Tx
from workerd.store.columns import (
    MAX_LISTED_BYTES,
    PAGE_BYTES,
    REQUEST_COLUMNS,
    JobRow,
    Page,
    RequestRow,
    cursor_text,
    jobs_by_key,
    marks,
    read_cursor,
    request,
)
from workerd.store.session import Row
from workerd.store.workflows import (
    CANCELLED,
    RequestUpdate,
    apply,
    cancel_all_waiting,
    cancel_waiting,
    of_final,
)
from workerd.workflow import RequestStatus

MAX_FAILED_COUNTED = 1000
"""Most recent failed requests scanned for the count."""
MAX_ERROR_CHARS = 10_000
MAX_JOBS_READ = 10_000
"""Jobs of a request that are read with it; a batch may have more."""
CANCELLED_BY_PERSON = f"{CANCELLED} on request"


class Submitted(NamedTuple):
    """The request's id; `created` is False if the id existed."""

    id: bytes
    created: bool


class PickedUp(NamedTuple):
    """Number of requests picked up, and the handlers that got jobs."""

    picked_up: int
    handlers: set[str]


def submit(
    tx: Tx,
    workflow: str,
    params: bytes,
    request_id: bytes | None = None,
    *,
    begins_at: int | None = None,
    traceparent: str | None = None,
) -> Submitted:
    """Insert a request, `queuing` until a dispatcher picks it up; `params`: a JSON object.

    `begins_at`: store time before which it is not picked up. `traceparent`: of the span it comes from.
    """
    ident = request_id or new_id()
    tx.enqueued.append(ident)
    created = tx.execute(
        "INSERT INTO workerd_requests (id, workflow, params, created_at, begins_at, traceparent)"
        " VALUES (%s, %s, %s, %s, %s, %s)" + tx.dialect.keep_existing("id"),
        (ident, workflow, params.decode(), columns.at(tx.now), columns.at(begins_at), traceparent),
    )
    return Submitted(ident, bool(created))


def submit_graph(
    tx: Tx,
    graph: wf.Graph,
    params: bytes,
    name: str | None,
    request_id: bytes | None = None,
    traceparent: str | None = None,
) -> Submitted:
    """Insert a request with its own graph, and begin it; a batch is `queuing` until `batches.seal`."""
    ident = request_id or new_id()
    status = RequestStatus.QUEUING if graph.members else RequestStatus.INPROGRESS
    tx.enqueued.append(ident)
    created = tx.execute(
        "INSERT INTO workerd_requests (id, workflow, params, created_at, steps, status, name, total, pending,"
        " traceparent) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)" + tx.dialect.keep_existing("id"),
        (
            ident, wf.ADHOC, params.decode(), columns.at(tx.now), wf.encode(graph).decode(), str(status),
            name, len(graph.jobs), "fill" if graph.members else None, traceparent,
        ),
    )  # fmt: skip
    if created and not graph.members:
        locked = columns.lock_requests(tx, [ident])
        apply(tx, [RequestUpdate(row) for row in locked.values()])
    return Submitted(ident, bool(created))


def find(tx: Tx, request_id: bytes) -> RequestRow | None:
    """The request without its jobs, None if there is none."""
    row = tx.one(f"SELECT {REQUEST_COLUMNS} FROM workerd_requests WHERE id = %s", (request_id,))
    return None if row is None else request(row)


def row_of(tx: Tx, request_id: bytes) -> RequestRow:
    """The request without its jobs. Raises NotFound."""
    row = find(tx, request_id)
    if row is None:
        raise NotFound("Request not found. `workerd request list` lists existing requests.")
    return row


def get(tx: Tx, request_id: bytes) -> tuple[RequestRow, list[JobRow]]:
    """The request and the current rows of its jobs, in the order of steps. Raises NotFound."""
    row = row_of(tx, request_id)
    keys = tx.query(
        f"SELECT id, attempt FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
        " WHERE request_id = %s AND status <> 'retry' LIMIT %s",
        (request_id, MAX_JOBS_READ),
    )
    refs = [AttemptRef(*key) for key in keys]
    jobs = jobs_by_key(tx, refs, most=min(MAX_LISTED_BYTES, PAGE_BYTES // max(1, len(refs))))
    return row, sorted(jobs.values(), key=lambda j: (j.step or 0, j.id, j.attempt))


def job_handlers(tx: Tx, request_id: bytes) -> set[str] | None:
    """The handlers of its jobs; None if it has so many that not all of them are read."""
    rows = tx.query(
        "SELECT j.handler, COUNT(*) FROM (SELECT handler FROM workerd_jobs"
        f" {tx.dialect.hint('workerd_request')} WHERE request_id = %s LIMIT %s) AS j GROUP BY j.handler",
        (request_id, MAX_JOBS_READ),
    )
    if sum(int(count) for _, count in rows) >= MAX_JOBS_READ:
        return None
    return {columns.lenient(handler) or "" for handler, _ in rows}


def list_(
    tx: Tx,
    *,
    status: str | None = None,
    workflow: str | None = None,
    since: int | None = None,
    limit: int = 50,
    after: str | None = None,
) -> Page[RequestRow]:
    """Requests, newest first by `created_at`. Raises InvalidValue if `after` is not a `Page.next`."""
    where, params = ["status = %s"], []
    position = read_cursor(after) if after is not None else None
    if position is not None:
        at = columns.at(position[0])
        where.append("created_at <= %s AND (created_at < %s OR id < %s)")
        params += [at, at, position[1]]
    if since is not None:
        where.append("created_at >= %s")
        params.append(columns.at(since))
    if workflow is not None:
        where.append("workflow = %s")
        params.append(workflow)
    found: list[Row] = []
    for state in [status] if status is not None else list(RequestStatus):
        found += tx.query(
            f"SELECT id, {row_size(tx)}, created_at FROM workerd_requests"
            f" {tx.dialect.hint('workerd_request_status')}"
            f" WHERE {' AND '.join(where)} ORDER BY created_at DESC, id DESC LIMIT %s",
            [str(state), *params, limit + 1],
        )
    found.sort(key=lambda row: (columns.time_or_zero(row[2]), row[0]), reverse=True)
    ids = fitting(found[:limit])
    shown = _listed(tx, ids)
    last = shown[-1] if len(found) > len(ids) else None
    return Page(shown, None if last is None else cursor_text(last.created_at, last.id))


def _listed(tx: Tx, ids: Sequence[bytes]) -> list[RequestRow]:
    """These requests as a list shows them: without steps, and without params and extras that are long."""
    if not ids:
        return []
    shown = REQUEST_COLUMNS.replace("steps,", "NULL,")
    for name in ("params", "extras"):
        long = f"{tx.dialect.byte_length(name)} > {MAX_LISTED_BYTES}"
        shown = shown.replace(f"{name},", f"CASE WHEN {long} THEN 'null' ELSE {name} END,")
    rows = tx.query(f"SELECT {shown} FROM workerd_requests WHERE id IN ({marks(ids)})", ids)
    by_id = {row.id: row for row in map(request, rows)}
    return [by_id[ident] for ident in ids]


def failed_since(tx: Tx, moment: int) -> dict[str, int]:
    """How many of the newest failed requests have ended since `moment`, by workflow."""
    rows = tx.query(
        "SELECT r.workflow, COUNT(*) FROM (SELECT workflow, completed_at FROM workerd_requests"
        f" {tx.dialect.hint('workerd_request_status')} WHERE status = 'failed'"
        " ORDER BY created_at DESC LIMIT %s) AS r WHERE r.completed_at >= %s GROUP BY r.workflow",
        (MAX_FAILED_COUNTED, columns.at(moment)),
    )
    return {columns.lenient(workflow) or "": int(count) for workflow, count in rows}


# -- pickup ---------------------------------------------------------------------------------


def pickup(tx: Tx, workflows: Mapping[str, WorkflowConfig], limit: int) -> PickedUp:
    """Start up to `limit` queuing requests, the oldest first, of workflows that this node knows.

    Requests of workflows with an interval are started by `start_recurring`.
    """
    locked = columns.lock_requests(tx, fitting(_queuing(tx, workflows, limit)))
    return _begin(tx, list(locked.values()), workflows)


def _queuing(tx: Tx, workflows: Mapping[str, WorkflowConfig], limit: int) -> list[Row]:
    names = [name for name, workflow in workflows.items() if workflow.schedule.cooler is None]
    if not names:
        return []
    return tx.query(
        f"SELECT id, {row_size(tx)} FROM workerd_requests {tx.dialect.hint('workerd_request_status')}"
        f" WHERE status = 'queuing' AND workflow IN ({marks(names)})"
        " AND (begins_at IS NULL OR begins_at <= %s)"
        f" ORDER BY created_at LIMIT %s{tx.dialect.skip_locked}",
        [*names, columns.at(tx.now), limit],
    )


def row_size(tx: Tx) -> str:
    """The bytes of a request that reading it brings here, as an expression for `fitting`."""
    size = tx.dialect.byte_length
    return f"{size('params')} + {size('extras')} + COALESCE({size('steps')}, 0)"


def fitting(rows: Sequence[Row]) -> list[bytes]:
    """The ids of the first rows (id, size) that are read together, at least one."""
    total = 0
    for n, row in enumerate(rows):
        total += row[1]
        if n and total > PAGE_BYTES:
            return [row[0] for row in rows[:n]]
    return [row[0] for row in rows]


def fail_queuing(tx: Tx, workflows: Mapping[str, WorkflowConfig], error: str) -> bytes | None:
    """Fail the next request to pick up, whose next state the store refuses; returns its id."""
    return fail_first(tx, _queuing(tx, workflows, 1), error)


def fail_first(tx: Tx, found: Sequence[Row], error: str) -> bytes | None:
    """Fail the first of the requests that were found, whatever becomes of the others; returns its id."""
    if not found:
        return None
    request_id: bytes = found[0][0]
    cancel_all_waiting(tx, [request_id])
    tx.execute(
        "UPDATE workerd_requests SET status = 'failed', error = %s, completed_at = %s WHERE id = %s",
        (error[:MAX_ERROR_CHARS], columns.at(tx.now), request_id),
    )
    tx.failed_requests.append(request_id)
    return request_id


def _begin(tx: Tx, rows: Sequence[RequestRow], workflows: Mapping[str, WorkflowConfig]) -> PickedUp:
    beginning = []
    for row in rows:
        item = RequestUpdate(row)
        beginning.append(item)
        try:
            wf.check_object(row.params)
            wf.check_object(row.extras)
        except InvalidValue as error:
            item.end(RequestStatus.FAILED, f"params or extras: {error}; correct them and submit it again")
            continue
        item.status = RequestStatus.INPROGRESS
        item.graph = wf.unfolding(wf.graph_of(workflows[compared_name(row.workflow)]))
        item.steps = wf.encode(item.graph)
        if item.graph.unfolds:
            item.pending = "release"
    return PickedUp(len(beginning), apply(tx, beginning))


def compared_name(name: str) -> str:
    """The name as MySQL compares it: it takes no notice of spaces at the end, which configured names lack."""
    return name.rstrip(" ")


def start_recurring(tx: Tx, workflow: WorkflowConfig) -> PickedUp:
    """Start the run of a workflow with an interval when it is due, and repair an interrupted one.

    A request that was submitted by hand, or inserted by another program, is the next run at once, or after
    the run in progress. The interval starts over from its end.
    """
    pause = workflow.schedule.cooler
    assert pause is not None
    run = intervals.live_run(tx, workflow.name)
    if run is not None and run.status is Status.INPROGRESS:
        return _repair_run(tx, workflow, run, pause)
    submitted = _oldest_queuing(tx, workflow.name)
    if submitted is not None:
        intervals.remove_waiting(tx, workflow.name)
        if not intervals.insert_run(tx, workflow.name, submitted.id, run_at=tx.now, running=True):
            return PickedUp(0, set())  # another node was first
        return _begin(tx, [submitted], {workflow.name: workflow})
    if run is None:
        intervals.ensure_next(tx, workflow.name, pause)
        return PickedUp(0, set())
    if intervals.follow_clock(tx, run):
        return PickedUp(0, set())
    due = run.status is Status.NEW or run.run_at <= tx.now
    if not due or not intervals.active(tx, [workflow.name]) or not intervals.start_run(tx, run):
        return PickedUp(0, set())
    submit(tx, workflow.name, b"{}", run.id)
    return _begin(tx, list(columns.lock_requests(tx, [run.id]).values()), {workflow.name: workflow})


def _oldest_queuing(tx: Tx, workflow: str) -> RequestRow | None:
    row = tx.one(
        f"SELECT {REQUEST_COLUMNS} FROM workerd_requests {tx.dialect.hint('workerd_request_status')}"
        " WHERE status = 'queuing' AND workflow = %s AND (begins_at IS NULL OR begins_at <= %s)"
        f" ORDER BY created_at LIMIT 1{tx.dialect.row_lock}",
        (workflow, columns.at(tx.now)),
    )
    return None if row is None else request(row)


def _repair_run(tx: Tx, workflow: WorkflowConfig, run: intervals.LiveRun, pause: float) -> PickedUp:
    """Close the row of a run whose request has ended or is gone."""
    row = tx.one("SELECT status FROM workerd_requests WHERE id = %s", (run.id,))
    status = wf.known_status(columns.text(row[0])) if row is not None else RequestStatus.CANCELLED
    if status is RequestStatus.QUEUING:
        return _begin(tx, list(columns.lock_requests(tx, [run.id]).values()), {workflow.name: workflow})
    if status in wf.REQUEST_ENDED:
        columns.lock_requests(tx, [run.id])
        intervals.close_run(tx, workflow.name, run.id, status, pause)
    return PickedUp(0, set())


# -- the end --------------------------------------------------------------------------------


def cancel(tx: Tx, request_id: bytes) -> str:
    """`ended`, or `asked`: it ends with its running jobs. Raises NotFound, Conflict if it has ended."""
    row = columns.lock_requests(tx, [request_id]).get(request_id)
    if row is None:
        raise NotFound("Request not found. `workerd request list` lists existing requests.")
    item = RequestUpdate(row)
    if item.ended:
        raise Conflict(f"The request has already ended: it is {row.status}.")
    item.fail(CANCELLED_BY_PERSON)
    if item.status is RequestStatus.QUEUING and row.steps is not None:
        item.status = RequestStatus.INPROGRESS  # what its batch has of jobs is cancelled, and `final` runs
        item.read(row.steps)
    if item.members is None:
        cancel_waiting(tx, [item])
    _ask_to_stop(tx, item)
    if item.status is RequestStatus.QUEUING:
        item.status = RequestStatus.CANCELLED
    apply(tx, [item])
    return "ended" if item.ended else "asked"


def _ask_to_stop(tx: Tx, item: RequestUpdate) -> None:
    """Ask the workers of its jobs to stop, but not those of `final`."""
    spared = of_final(tx, item, ("inprogress",))
    tx.execute(
        "UPDATE workerd_jobs SET cancel_requested_at = COALESCE(cancel_requested_at, %s)"
        " WHERE request_id = %s AND status = 'inprogress'"
        + (f" AND id NOT IN ({marks(spared)})" if spared else ""),
        (columns.at(tx.now), item.row.id, *spared),
    )


def ended(tx: Tx, request_id: bytes) -> bool:
    """Whether the request has ended. Raises NotFound."""
    row = tx.one("SELECT status FROM workerd_requests WHERE id = %s", (request_id,))
    if row is None:
        raise NotFound(
            f"Request {id_text(request_id)} not found. `workerd request list` lists existing requests."
        )
    return columns.lenient(row[0]) in wf.REQUEST_ENDED


def ended_of(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    """Which of these requests have ended; one statement for all waiting callers."""
    if not ids:
        return set()
    marks = ", ".join(["%s"] * len(ids))
    rows = tx.query(
        f"SELECT id FROM workerd_requests WHERE id IN ({marks}) AND completed_at IS NOT NULL", list(ids)
    )
    return {row[0] for row in rows}
