"""Requests in progress that nothing moves on: found by a sweep, and advanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.config.workflow_config import WorkflowConfig
from workerd.job import Status
from workerd.store import columns, requests
from workerd.store.base import Tx
from workerd.store.columns import RequestRow, cursor_text, read_cursor
from workerd.store.session import Row
from workerd.store.workflows import CANCELLED, RequestUpdate, apply, job_state, stage_states
from workerd.workflow import RequestStatus


class Swept(NamedTuple):
    """`cursor`: where the next sweep continues, None at the end; `repaired`: requests that were stuck."""

    cursor: str | None
    repaired: int
    handlers: set[str]


def sweep(tx: Tx, workflows: Mapping[str, WorkflowConfig], limit: int, cursor: str | None = None) -> Swept:
    """Check up to `limit` requests in progress and advance those that are stuck.

    Also those written by hand in an incomplete state: without steps, without jobs, with jobs that wait
    beside a failed one. Requests locked by another transaction are skipped.
    """
    found = _in_progress(tx, limit, cursor)
    ids = requests.fitting(found)
    locked = columns.lock_requests(tx, ids)
    items = [item for item in (_stuck(tx, locked[one], workflows) for one in ids) if item is not None]
    handlers = apply(tx, items)
    more = len(found) == limit or len(ids) < len(found)
    last = cursor_text(locked[ids[-1]].created_at, ids[-1]) if more else None
    return Swept(last, len(items), handlers)


def after_next(tx: Tx, cursor: str | None) -> str | None:
    """Where a sweep continues that leaves the next request out, None at the end."""
    found = _in_progress(tx, 1, cursor)
    row = found and tx.one("SELECT created_at FROM workerd_requests WHERE id = %s", (found[0][0],))
    return cursor_text(columns.time_or_zero(row[0]), found[0][0]) if row else None


def fail_in_progress(tx: Tx, cursor: str | None, error: str) -> bytes | None:
    """Fail the next request to sweep, whose next state the store refuses; returns its id."""
    return requests.fail_first(tx, _in_progress(tx, 1, cursor), error)


def _in_progress(tx: Tx, limit: int, cursor: str | None) -> list[Row]:
    where, params = "", []
    if cursor is not None:
        created_at, ident = read_cursor(cursor)
        at = columns.at(created_at)
        where, params = " AND created_at >= %s AND (created_at > %s OR id > %s)", [at, at, ident]
    return tx.query(
        f"SELECT id, {requests.row_size(tx)} FROM workerd_requests"
        f" {tx.dialect.hint('workerd_request_status')}"
        f" WHERE status = 'inprogress'{where} ORDER BY created_at, id LIMIT %s{tx.dialect.skip_locked}",
        [*params, limit],
    )


def _stuck(tx: Tx, row: RequestRow, workflows: Mapping[str, WorkflowConfig]) -> RequestUpdate | None:
    """The request if it can be advanced, else None."""
    item = RequestUpdate(row)
    if row.steps is None and requests.compared_name(row.workflow) in workflows:
        item.graph = wf.graph_of(workflows[requests.compared_name(row.workflow)])
        item.steps = wf.encode(item.graph)
    if item.graph is None:
        return item if item.failing is not None else None
    if item.members is not None:
        if item.failing and not item.pending and not item.members.over and _has_waiting(tx, row.id):
            item.pending = "cancel"  # what was tried again, or released, behind the slices
            return item
        decision = wf.decide(item.graph, stage_states(tx, item), failing=item.failing, members=item.members)
    else:
        decision = _decision(tx, item, item.graph)
    moves = decision.insert or decision.cancel_waiting or decision.status is not RequestStatus.INPROGRESS
    return item if moves or item.steps is not None else None


def _has_waiting(tx: Tx, request_id: bytes) -> bool:
    """Whether a job of a batch waits; those of its stages do not yet."""
    found = tx.one(
        f"SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
        " WHERE request_id = %s AND status IN ('scheduled','new') LIMIT 1",
        (request_id,),
    )
    return found is not None


def _decision(tx: Tx, item: RequestUpdate, graph: wf.Graph) -> wf.WorkflowDecision:
    states = _job_states(tx, item.row.id)
    if item.failing is None and (failed := _failure_beside_waiting(wf.Stages(graph), states)):
        item.fail(failed)
    return wf.decide(graph, [state.state for state in states], failing=item.failing)


class _DatedState(msgspec.Struct, frozen=True):
    state: wf.JobState
    run_at: int
    ended_at: int


def _job_states(tx: Tx, request_id: bytes) -> list[_DatedState]:
    return [
        _DatedState(
            job_state(name, status, reason),
            columns.time_or_zero(run_at),
            columns.time_or_zero(ended),
        )
        for name, status, reason, run_at, ended in tx.query(
            "SELECT name, status, reason, run_at, COALESCE(ingested_at, finished_at)"
            f" FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
            " WHERE request_id = %s AND status <> 'retry'",
            (request_id,),
        )
    ]


def _failure_beside_waiting(stages: wf.Stages, all_states: Sequence[_DatedState]) -> str | None:
    """Why a request fails whose jobs wait since before a failure; a retry by hand waits since later."""
    states = [
        s for s in all_states if stages.of(s.state.name) == "main" and not stages.tolerates(s.state.name)
    ]
    waiting = [s.run_at for s in states if s.state.status in (Status.SCHEDULED, Status.NEW)]
    failed = [s for s in states if s.state.status in (Status.FAILURE, Status.CANCELLED)]
    before = [s for s in failed if waiting and s.ended_at >= min(waiting)]
    for one in before:
        if one.state.status is Status.FAILURE:
            return f'"{one.state.name}" failed'
    return f'{CANCELLED} with its job "{before[0].state.name}"' if before else None
