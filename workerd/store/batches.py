"""Batches: requests of many jobs that need nothing of each other, written and cancelled in slices.

Each job is a row from the start, held until the batch is complete; the request counts how many have ended, in
the transaction that ends them. So no step reads all rows, or locks the request for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.clock import SECOND
from workerd.config.workflow_config import WAIT_HANDLER, WorkflowJob
from workerd.errors import Conflict, NotFound
from workerd.job import AttemptRef
from workerd.job_spec import NewJob
from workerd.store import columns, job_control, jobs, links, workflows
from workerd.store.base import Tx
from workerd.store.columns import RequestRow
from workerd.store.links import HELD_AT
from workerd.store.polls import HAS_SLICES
from workerd.store.workflows import RequestUpdate, apply

SLICE_ROWS = 500
COMPLETE_WITHIN_S = 3600
NEVER_COMPLETED = "never completed: its jobs had not all arrived after 1 h"


class Worked(NamedTuple):
    """Whether there was anything to do, and the handlers that got jobs."""

    found: bool
    handlers: set[str]


def _locked(tx: Tx, request_id: bytes) -> RequestRow:
    row = columns.lock_requests(tx, [request_id]).get(request_id)
    if row is None:
        raise NotFound("Request not found. `workerd request list` lists existing requests.")
    return row


def add(tx: Tx, request_id: bytes, new: Sequence[NewJob], nodes: Sequence[WorkflowJob] = ()) -> None:
    """Add jobs to a batch that is not complete; those that it has are left as they are.

    `nodes`: of a large graph, what each of them needs.
    Raises NotFound, Conflict if it is complete or has ended.
    """
    row = _locked(tx, request_id)
    if row.pending != "fill":
        raise Conflict("The request takes no more jobs: it is complete, or has ended.")
    created = _add(tx, row, new, nodes)
    tx.execute("UPDATE workerd_requests SET total = total + %s WHERE id = %s", (created, row.id))


def _add(tx: Tx, row: RequestRow, new: Sequence[NewJob], nodes: Sequence[WorkflowJob]) -> int:
    """Write members, which are held; the number of those that were not there."""
    members = [
        msgspec.structs.replace(
            job,
            id=wf.job_id(row.id, row.created_at, job.name or ""),
            request_id=row.id,
            run_at=HELD_AT,
        )
        for job in new
    ]
    links.add(tx, row, nodes)
    return sum(one.created for one in jobs.insert(tx, members))


def seal(tx: Tx, request_id: bytes) -> set[str]:
    """Begin a batch: it is complete; returns the handlers that got jobs. Raises NotFound.

    Its jobs are released in slices. A second call changes nothing.
    """
    row = _locked(tx, request_id)
    if row.pending != "fill":
        return set()
    item = _begun(row)
    item.pending = "cancel" if item.failing is not None else "release" if row.total else None
    return apply(tx, [item])


def _begun(row: RequestRow) -> RequestUpdate:
    item = RequestUpdate(row)
    item.status = wf.RequestStatus.INPROGRESS
    item.read(row.steps or b"")
    return item


def work(tx: Tx) -> Worked:
    """One slice of the oldest batch whose jobs are to be released, cancelled or retried."""
    found = tx.one(
        f"SELECT id FROM workerd_requests {tx.dialect.hint('workerd_request_pending')}"
        f" WHERE {HAS_SLICES} ORDER BY pending, created_at LIMIT 1{tx.dialect.skip_locked}"
    )
    if found is None:
        return Worked(False, set())
    row = _locked(tx, found[0])
    item = RequestUpdate(row)
    slices = {"release": _release, "cancel": _cancel, "reopen": _reopen, "spread": _spread}
    done = slices[row.pending](tx, row, item) if row.pending in slices else _Slice(None, set())
    if done.last is None:
        item.pending = _following(tx, item)
    handlers = done.handlers | apply(tx, [item])
    if done.last is not None and item.pending == row.pending:
        tx.execute("UPDATE workerd_requests SET pending_after = %s WHERE id = %s", (done.last, row.id))
    return Worked(True, handlers)


def _following(tx: Tx, item: RequestUpdate) -> str | None:
    """What there is to do for a batch after the last slice."""
    if item.graph is None:
        return None
    if item.row.pending == "reopen" and item.failing is None:
        return "release"  # of those that were not released, or became ready, before it was reopened
    if not item.graph.linked:
        return None
    if links.has_state(tx, item.row.id, "spread"):
        return "spread"
    _check_earlier_failures(tx, item)
    return None


def _check_earlier_failures(tx: Tx, item: RequestUpdate) -> None:
    """Fail a large graph that can go no further; an ending while it was reopened did not look."""
    row = item.row
    if item.failing is not None or not links.has_state(tx, row.id, "failed"):
        return
    begun = "EXISTS (SELECT 1 FROM workerd_request_jobs AS n WHERE n.id = j.id AND n.needs = 0)"
    live = tx.one(
        f"SELECT 1 FROM workerd_jobs AS j {tx.dialect.hint('workerd_request')} WHERE j.request_id = %s"
        f" AND (j.status IN ('new','inprogress')"
        f" OR j.status = 'scheduled' AND (j.run_at <> %s OR {begun})) LIMIT 1",
        (row.id, columns.at(HELD_AT)),
    )
    if live is None:
        item.fail(workflows.FAILED_EARLIER)


class _Slice(NamedTuple):
    """The last job of a slice, None if it was the last slice."""

    last: bytes | None
    handlers: set[str]


def _rows(
    tx: Tx, row: RequestRow, condition: str, params: Sequence[object], limit: int
) -> tuple[list[AttemptRef], set[str], bytes | None]:
    """The next rows of a batch that meet the condition, their handlers, and where the next slice begins."""
    found = tx.query(
        f"SELECT id, attempt, handler FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
        f" WHERE request_id = %s AND id > %s AND {condition} ORDER BY id, attempt LIMIT %s",
        [row.id, row.pending_after or b"", *params, limit],
    )
    refs = [AttemptRef(job_id, attempt) for job_id, attempt, _ in found]
    handlers = {columns.lenient(handler) or "" for _, _, handler in found}
    return refs, handlers, refs[-1].id if len(refs) == limit else None


def _unfold(tx: Tx, row: RequestRow, item: RequestUpdate, graph: wf.Graph) -> _Slice:
    """Write the next members of a workflow's graph; when all are there, the graph is without them."""
    begin = int.from_bytes(row.pending_after or b"")
    nodes = graph.jobs[begin : begin + SLICE_ROWS]
    meta = workflows.trace_meta(row)
    new = [
        NewJob(
            handler=job.handler, name=job.name, vars=msgspec.json.encode(job.vars), step=job.step, meta=meta
        )
        for job in nodes
    ]
    item.counts = item.counts._replace(total=item.counts.total + _add(tx, row, new, nodes))
    end = begin + len(nodes)
    if end < len(graph.jobs):
        return _Slice(end.to_bytes(16), set())
    item.graph = msgspec.structs.replace(graph, jobs=())
    item.steps = wf.encode(msgspec.structs.replace(workflows.graph(row.steps or b""), jobs=()))
    return _Slice(bytes(16), set())


def _release(tx: Tx, row: RequestRow, item: RequestUpdate) -> _Slice:
    if item.graph is not None and item.graph.unfolds:
        return _unfold(tx, row, item, item.graph)
    # A signal that a stage waits for without a timeout has that `run_at` too; no member of a batch is a wait.
    linked = item.graph is not None and item.graph.linked
    held = "status = 'scheduled' AND run_at = %s" + ("" if linked else " AND handler <> %s")
    params = [columns.at(HELD_AT)] + ([] if linked else [WAIT_HANDLER])
    refs, handlers, last = _rows(tx, row, held, params, SLICE_ROWS)
    if linked:
        begun = links.begin(tx, row, sorted(ref.id for ref in refs))
        handlers, item.step = begun.handlers, max(item.step, begun.step)
    elif refs:
        tx.execute(
            f"UPDATE workerd_jobs {tx.dialect.by_key} SET status = 'new', run_at = %s"
            f" WHERE ({columns.keys(refs)}) AND status = 'scheduled'",
            (columns.at(tx.now),),
        )
    return _Slice(last, handlers)


def _cancel(tx: Tx, row: RequestRow, item: RequestUpdate) -> _Slice:
    refs, _, last = _rows(tx, row, "status IN ('scheduled','new')", [], SLICE_ROWS)
    if item.graph is None:
        return _Slice(last, set())
    staged = {wf.job_id(row.id, row.created_at, job.name) for job in (*item.graph.then, *item.graph.final)}
    refs = [ref for ref in refs if ref.id not in staged]
    if refs:
        now = columns.at(tx.now)
        cancelled = tx.execute(
            f"UPDATE workerd_jobs {tx.dialect.by_key}"
            " SET status = 'cancelled', reason = 'cancelled', error = %s,"
            f" finished_at = %s, ingested_at = %s WHERE ({columns.keys(refs)})"
            " AND status IN ('scheduled','new')",
            (workflows.REQUEST_OVER, now, now),
        )
        item.counts = item.counts._replace(failed=item.counts.failed + cancelled)
    return _Slice(last, set())


def _reopen(tx: Tx, row: RequestRow, item: RequestUpdate) -> _Slice:
    """Retry what was cancelled only because the batch had failed."""
    condition = "status = 'cancelled' AND error = %s"
    refs, handlers, last = _rows(tx, row, condition, [workflows.REQUEST_OVER], SLICE_ROWS)
    for ref in refs:
        job_control.again(tx, *ref)
    if refs and item.graph is not None and item.graph.linked:
        links.hold(tx, row, sorted(ref.id for ref in refs))
    item.counts = item.counts._replace(failed=max(0, item.counts.failed - len(refs)))
    return _Slice(last, handlers)


def _spread(tx: Tx, row: RequestRow, item: RequestUpdate) -> _Slice:
    """Tell the jobs that need one which very many need."""
    told = links.spread(tx, row, stopped=item.failing is not None)
    item.step = max(item.step, told.step)
    return _Slice(row.id if told.more else None, told.handlers)


def expire(tx: Tx) -> bool:
    """Fail the oldest batch whose jobs have not all arrived in time; whether there was one."""
    found = tx.one(
        f"SELECT id FROM workerd_requests {tx.dialect.hint('workerd_request_pending')}"
        f" WHERE pending = 'fill' AND created_at < %s ORDER BY created_at LIMIT 1{tx.dialect.skip_locked}",
        (columns.at(tx.now - COMPLETE_WITHIN_S * SECOND),),
    )
    if found is None:
        return False
    row = _locked(tx, found[0])
    if row.pending == "fill":
        item = _begun(row)
        item.fail(NEVER_COMPLETED)
        apply(tx, [item])
    return True
