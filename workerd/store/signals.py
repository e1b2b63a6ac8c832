"""Waits of requests that end: by a signal, or because they are due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.config.workflow_config import WAIT_HANDLER, WorkflowConfig, WorkflowJob
from workerd.errors import Conflict, InvalidValue, NotFound
from workerd.job import ClaimedAttempt, Status
from workerd.outcome import ClosedAttempt, Outcome, Reason, failed
from workerd.store import columns, links, waits, workflows
from workerd.store.base import Tx
from workerd.store.columns import RequestRow, chunks, marks
from workerd.store.outcomes import ClosedBatch, closed_attempt

MAX_NAMES_SHOWN = 20


class _Waiting(NamedTuple):
    """The row of a wait that has not ended."""

    id: bytes
    attempt: int
    request_id: bytes
    name: str


class Passed(NamedTuple):
    """How many rows of waits were due, and the handlers that got jobs."""

    due: int
    handlers: set[str]


def deliver(
    tx: Tx,
    request_id: bytes,
    name: str,
    payload: bytes,
    source: str,
    configured: Mapping[str, WorkflowConfig],
) -> set[str]:
    """Give a signal to a request; returns the handlers that got jobs. One that comes early is kept.

    Raises NotFound, Conflict if the request has ended or the signal was given before, InvalidValue for a name
    that no job of the request waits for. Locks: the request, then its rows.
    """
    row = columns.lock_requests(tx, [request_id]).get(request_id)
    if row is None:
        raise NotFound("Request not found. `workerd request list` lists existing requests.")
    if row.status in wf.REQUEST_ENDED:
        raise Conflict(f"The request has already ended: it is {row.status}.")
    graph = _graph(row, configured)
    waiting = [job for job in graph.all_jobs if job.signal == name] if graph is not None else []
    linked, begun = False, list[bytes]()
    if graph is not None and graph.linked:
        linked, begun = links.waiting_for(tx, row.id, name)
    if not waiting and not linked:
        known = sorted({job.signal for job in graph.all_jobs if job.signal}) if graph is not None else []
        known += links.signals_of(tx, row.id, MAX_NAMES_SHOWN) if graph is not None and graph.linked else []
        shown = ", ".join(known[:MAX_NAMES_SHOWN]) or "none"
        raise InvalidValue(f'signal: no job of the request waits for "{name[:60]}"; its signals are: {shown}')
    if not waits.keep(tx, request_id, name, payload, source):
        raise Conflict(f"The signal {name!r} was already sent; only the first one counts.")
    ids: list[bytes] = []
    if row.pending != "fill" and not (graph is not None and graph.unfolds):  # else none has begun
        ids = [*(wf.job_id(row.id, row.created_at, job.name) for job in waiting), *begun]
    return _close(tx, {row.id: row}, _live(tx, ids), {row.id: graph} if graph is not None else {})


def _graph(row: RequestRow, configured: Mapping[str, WorkflowConfig]) -> wf.Graph | None:
    if row.steps is not None:
        return wf.of_cycle(workflows.graph(row.steps), row.cycle)
    workflow = configured.get(row.workflow.rstrip(" "))
    return None if workflow is None else wf.graph_of(workflow)


def pass_due(tx: Tx, limit: int) -> Passed:
    """End up to `limit` waits that are due."""
    rows = tx.query(
        f"SELECT id, request_id FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'new' AND holder = %s ORDER BY priority, run_at LIMIT %s",
        (WAIT_HANDLER, limit),
    )
    if not rows:
        return Passed(0, set())
    requests = columns.lock_requests(tx, {row[1] for row in rows if row[1] is not None})
    live = _live(tx, [row[0] for row in rows])
    graphs = {}
    for request in requests.values():
        try:
            graphs[request.id] = _graph(request, {})
        except InvalidValue:
            graphs[request.id] = None  # it fails with the ending of this wait
    return Passed(len(rows), _close(tx, requests, live, graphs))


def _live(tx: Tx, ids: Sequence[bytes]) -> list[_Waiting]:
    """Lock the rows among these jobs that wait."""
    found: list[_Waiting] = []
    for part in chunks(sorted(ids)):
        for job_id, attempt, request_id, name in tx.query(
            "SELECT id, attempt, request_id, name FROM workerd_jobs"
            f" WHERE id IN ({marks(part)}) AND status IN ('scheduled','new') AND handler = %s"
            f" ORDER BY id{tx.dialect.row_lock}",
            [*part, WAIT_HANDLER],
        ):
            found.append(_Waiting(job_id, attempt, request_id or b"", columns.lenient(name) or ""))
    return found


def _close(
    tx: Tx,
    requests: dict[bytes, RequestRow],
    waiting: Sequence[_Waiting],
    graphs: Mapping[bytes, wf.Graph | None],
) -> set[str]:
    """End these waits and advance their requests."""
    jobs = {
        request_id: {job.name: job for job in graph.all_jobs}
        for request_id, graph in graphs.items()
        if graph is not None
    }
    linked = [one.id for one in waiting if (of := graphs.get(one.request_id)) is not None and of.linked]
    specs = links.waits_of(tx, linked) if linked else {}
    ended = [
        _ended(tx, one, specs.get(one.id) or jobs.get(one.request_id, {}).get(one.name)) for one in waiting
    ]
    batch = ClosedBatch(now=tx.now, requests=requests, ended=ended, released=[], woken=set())
    workflows.advance(tx, batch)
    return batch.woken


def _ended(tx: Tx, row: _Waiting, job: WorkflowJob | None) -> ClosedAttempt:
    """Close the row: with the signal's payload, or because its time has come."""
    payload = waits.kept(tx, row.request_id, job.signal) if job is not None and job.signal else None
    attempt = ClaimedAttempt(
        id=row.id,
        attempt=row.attempt,
        claimed_at=0,
        handler=WAIT_HANDLER,
        request_id=row.request_id,
        name=row.name,
    )
    outcome = failed(attempt, "its request does not exist, or has another graph")
    if job is not None and (not job.signal or payload is not None):
        outcome = msgspec.structs.replace(
            outcome, status=Status.COMPLETED, reason=Reason.OK, success=True, error=None
        )
    elif job is not None:
        outcome = msgspec.structs.replace(
            outcome, reason=Reason.DEADLINE, error=f'the signal "{job.signal}" did not come in time'
        )
    _write(tx, outcome, payload)
    return closed_attempt(outcome, b"", tx.now)


def _write(tx: Tx, outcome: Outcome, payload: bytes | None) -> None:
    now = columns.at(tx.now)
    tx.execute(
        "UPDATE workerd_jobs SET status = %s, reason = %s, success = %s, error = %s, payload = %s,"
        " payload_type = %s, finished_at = %s, ingested_at = %s WHERE id = %s AND attempt = %s",
        (
            str(outcome.status), str(outcome.reason), outcome.success, outcome.error, payload,
            None if payload is None else "json", now, now, *outcome.ref,
        ),
    )  # fmt: skip
