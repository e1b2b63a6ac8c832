"""Moving requests on: what `workflow.decide` says, in the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from workerd import workflow as wf
from workerd.config.model import WorkflowJob
from workerd.errors import InvalidValue, UnreadableRow
from workerd.job import Status
from workerd.job_spec import NewJob
from workerd.outcome import Outcome, Reason
from workerd.store import columns, intervals, jobs
from workerd.store.base import Tx
from workerd.store.columns import RequestRow, chunks, marks
from workerd.store.outcomes import ClosedBatch
from workerd.text import one_line

# Moving requests on: what `workflow.decide` says, carried out in the caller's transaction.
#
# Whoever moves a request holds its row's lock, and every transaction that closes one of its jobs writes the
# row: on Galera a lock that writes nothing protects nothing. Locks: request rows by id, then job rows, then
# inserts.
#

EXTRAS_LIMIT = 1 << 20
"""Bytes of a request's extras: each of its jobs gets them whole."""

REQUEST_OVER = "its request has ended"
"""The error of jobs that were cancelled with their request; retry puts them back by it."""

_IN_PROGRESS = wf.RequestStatus.INPROGRESS


@lru_cache(maxsize=32)
def _graph_cached(steps: bytes) -> wf.Graph:
    return wf.decode(steps)


def graph(steps: bytes) -> wf.Graph:
    """The graph of the column `steps`; InvalidValue if it is none."""
    # Requests of one workflow share their text; a very long one is not kept in memory.
    return _graph_cached(steps) if len(steps) <= 65536 else wf.decode(steps)


CANCELLED = "cancelled"
"""The first word of a request's `error` when it was cancelled and did not fail: the row tells how it ends."""


def _end_told_by(error: str) -> wf.RequestStatus:
    return wf.RequestStatus.CANCELLED if error.startswith(f"{CANCELLED} ") else wf.RequestStatus.FAILED


class Moving:
    """A locked request and what this transaction makes of it."""

    def __init__(self, row: RequestRow) -> None:
        self.row = row
        self.status = wf.RequestStatus(row.status)
        self.step = row.step
        self.error = row.error
        self.failing = None if row.error is None else _end_told_by(row.error)
        self.extras: bytes | None = None  # what is to be written, None if they stay
        self.steps: bytes | None = None  # the same
        self.given: list[bytes] = []
        self.spawns: list[tuple[str | None, bytes]] = []
        self.insert: list[WorkflowJob] = []
        self.graph: wf.Graph | None = None
        if row.steps is not None and self.status is _IN_PROGRESS:
            self.read(row.steps)

    def read(self, steps: bytes) -> None:
        """Take the graph from the column; one that cannot be read fails the request."""
        try:
            self.graph = graph(steps)
        except InvalidValue as error:
            self.fail(str(error))

    def fail(self, error: str) -> None:
        """What waits is cancelled from now on; the first error stays."""
        if self.failing is None:
            self.error = one_line(error)
            self.failing = _end_told_by(error)

    def end(self, status: wf.RequestStatus, error: str) -> None:
        """End it without asking its jobs."""
        self.fail(error)
        self.status = status

    def take(self, outcome: Outcome) -> None:
        """What an outcome that took effect means for the request."""
        who = outcome.name or outcome.handler
        if outcome.status is Status.FAILURE:
            self.fail(f'"{who}" failed: {outcome.error or outcome.reason}')
        elif outcome.status is Status.CANCELLED:
            self.fail(f'{CANCELLED} with its job "{who}"')
        if outcome.extras is not None:
            self.given.append(outcome.extras)
        if outcome.spawn is not None and outcome.status is Status.COMPLETED:
            self.spawns.append((outcome.name, outcome.spawn))

    def merge(self) -> None:
        """Lay what its jobs returned over its extras."""
        if not self.given:
            return
        try:
            merged = wf.merge(self.row.extras, self.given)
        except InvalidValue as error:
            self.fail(f"extras: {error}")
            return
        if merged is not None and len(merged) > EXTRAS_LIMIT:
            self.fail(
                f"extras: they would have {len(merged)} bytes, the limit is {EXTRAS_LIMIT};"
                " hand on a reference instead of the data"
            )
        elif merged != self.row.extras:
            self.extras = merged

    def decide(self, states: list[wf.JobState]) -> bool:
        """Adopt what follows from its jobs' states; True if what waits must be cancelled first."""
        assert self.graph is not None
        decision = wf.decide(self.graph, states, failing=self.failing)
        self.status, self.step = decision.status, max(decision.step, self.step)
        self.insert.extend(decision.insert)
        return decision.cancel_waiting

    @property
    def ended(self) -> bool:
        return self.status in wf.REQUEST_ENDED


def advance(tx: Tx, batch: ClosedBatch) -> None:
    """Move on the requests of the batch: merge extras, insert spawned jobs and further steps, end them."""
    _follow(tx, batch, move_on=True)


def record(tx: Tx, batch: ClosedBatch) -> None:
    """As `advance`, but further steps are left to the sweep."""
    _follow(tx, batch, move_on=False)


def _follow(tx: Tx, batch: ClosedBatch, *, move_on: bool) -> None:
    if not batch.requests:
        return
    moving: dict[bytes, Moving] = {}
    for ended in batch.ended:
        outcome = ended.outcome
        row = batch.requests.get(outcome.request_id) if outcome.request_id is not None else None
        if row is None:
            continue
        if row.id not in moving:
            moving[row.id] = Moving(row)
        moving[row.id].take(outcome)
    for item in moving.values():
        item.merge()
    batch.woken |= move(tx, list(moving.values()), move_on=move_on)


def move(tx: Tx, moving: Sequence[Moving], *, move_on: bool = True) -> set[str]:
    """Decide, cancel what has to be, write every row, insert; the handlers that got new jobs."""
    alive = [m for m in moving if m.status is _IN_PROGRESS]
    found = _states(tx, [m.row.id for m in alive])
    for item in alive:
        if item.graph is None and item.failing is not None:
            item.graph = wf.Graph(name=item.row.workflow, jobs=())  # nobody can read it: only its end is left
        if item.graph is not None:
            _spawn(item, item.graph, found[item.row.id])
    deciding = [m for m in alive if m.graph is not None and (move_on or m.failing is not None)]
    # Between the look and the cancel another node may have claimed what waited: look again, then decide.
    while deciding:
        deciding = [m for m in deciding if m.decide(found[m.row.id])]
        if deciding:
            ids = [m.row.id for m in deciding]
            cancel_waiting(tx, ids)
            found = _states(tx, ids)
    _write(tx, moving)
    intervals.close_runs(
        tx, [(m.row.id, m.status, m.graph) for m in moving if m.ended and m.graph is not None]
    )
    return _insert(tx, moving)


def _spawn(item: Moving, graph_: wf.Graph, states: list[wf.JobState]) -> None:
    stopped = item.failing is not None or (graph_.quiet and any(s.reason is Reason.IGNORED for s in states))
    if stopped:
        return
    for parent, text in item.spawns:
        try:
            made = wf.spawned(graph_, parent, text, [s.name for s in states])
        except InvalidValue as error:
            item.fail(str(error))
            item.insert.clear()
            return
        item.insert.extend(made)
    # Only when all are good, so that a failing request has nothing that waits outside of the table.
    states.extend(wf.JobState(job.name, Status.NEW) for job in item.insert)


def _states(tx: Tx, ids: Sequence[bytes]) -> defaultdict[bytes, list[wf.JobState]]:
    found: defaultdict[bytes, list[wf.JobState]] = defaultdict(list)
    for part in chunks(ids):
        for request_id, name, status, reason in tx.query(
            f"SELECT request_id, name, status, reason FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
            f" WHERE request_id IN ({marks(part)}) AND status <> 'retry'",
            part,
        ):
            found[request_id].append(job_state(name, status, reason))
    return found


def job_state(name: bytes | None, status: bytes, reason: bytes | None) -> wf.JobState:
    """A job's state from its columns."""
    try:
        why = None if reason is None else Reason(columns.text(reason))
    except (ValueError, UnreadableRow):
        why = None  # written by hand; only `ignored` means anything here
    return wf.JobState(columns.lenient(name), Status(columns.text(status)), why)


def cancel_waiting(tx: Tx, ids: Sequence[bytes]) -> None:
    """End the jobs of these requests that wait, in the name of their requests."""
    now = columns.at(tx.now)
    for part in chunks(ids):
        tx.execute(
            f"UPDATE workerd_jobs SET status = 'cancelled', reason = 'cancelled', error = %s,"
            f" finished_at = %s, ingested_at = %s"
            f" WHERE request_id IN ({marks(part)}) AND status IN ('scheduled','new')",
            [REQUEST_OVER, now, now, *part],
        )


def _write(tx: Tx, moving: Sequence[Moving]) -> None:
    """Every row gets its new version; those that become alike share a statement."""
    groups: defaultdict[tuple[str, tuple[object, ...]], list[bytes]] = defaultdict(list)
    for m in moving:
        sets, params = _changes(tx, m)
        groups[", ".join(sets), tuple(params)].append(m.row.id)
    for (change, given), ids in groups.items():
        for part in chunks(ids):
            tx.execute(f"UPDATE workerd_requests SET {change} WHERE id IN ({marks(part)})", [*given, *part])


def _changes(tx: Tx, m: Moving) -> tuple[list[str], list[object]]:
    sets = ["version = version + 1", "status = %s", "step = %s", "error = %s"]
    error = None if m.status is wf.RequestStatus.COMPLETED else m.error
    params: list[object] = [str(m.status), m.step, error]
    for column, text in (("extras", m.extras), ("steps", m.steps)):
        if text is not None:
            sets.append(f"{column} = %s")
            params.append(text.decode())
    if m.ended:
        sets.append("completed_at = COALESCE(completed_at, %s)")
        params.append(columns.at(tx.now))
    else:
        sets.append("completed_at = NULL")
    return sets, params


def _insert(tx: Tx, moving: Sequence[Moving]) -> set[str]:
    new = [
        NewJob(
            handler=job.handler,
            # The id follows from request and name: no second one can get past the primary key.
            id=wf.job_id(m.row.id, m.row.created_at, job.name),
            vars=msgspec.json.encode(job.vars),
            request_id=m.row.id,
            step=job.step,
            name=job.name,
        )
        for m in moving
        for job in m.insert
    ]
    if new:
        jobs.insert(tx, new)
    return {job.handler for job in new}
