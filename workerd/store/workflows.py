"""Advancing requests: what `workflow.decide` decides, written in the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from workerd import workflow as wf
from workerd.config.workflow_config import WAIT_HANDLER, WorkflowJob
from workerd.errors import InvalidValue, UnreadableRow
from workerd.job import ENDED, Status
from workerd.job_spec import NewJob
from workerd.outcome import Outcome, Reason
from workerd.spawned_jobs import spawned
from workerd.store import columns, intervals, jobs, links, waits
from workerd.store.base import Tx
from workerd.store.columns import RequestRow, chunks, marks
from workerd.store.outcomes import ClosedBatch
from workerd.text import one_line

# A request is only advanced under the lock of its row, and every transaction that closes one of its jobs
# writes the row: on Galera a lock that writes nothing protects nothing. Lock order: request rows by id, then
# job rows, then inserts.

MAX_EXTRAS_BYTES = 1 << 20
"""Bytes of a request's extras, which every job of the request receives."""

REQUEST_OVER = "its request has ended"
"""The error of jobs that were cancelled with their request, by which a retry finds and repeats them."""

FAILED_EARLIER = "one of its jobs had failed before it was reopened"
"""The error of a large graph that ends again, since nobody has retried that job."""

_IN_PROGRESS = wf.RequestStatus.INPROGRESS


@lru_cache(maxsize=32)
def _graph_cached(steps: bytes) -> wf.Graph:
    return wf.decode(steps)


def graph(steps: bytes) -> wf.Graph:
    """The graph of the column `steps`. Raises InvalidValue."""
    # Requests of one workflow have the same text; a very long one is not cached.
    return _graph_cached(steps) if len(steps) <= 65536 else wf.decode(steps)


CANCELLED = "cancelled"
"""First word of a request's `error` if it was cancelled, not failed: so the row tells how it will end."""


def _end_status(error: str) -> wf.RequestStatus:
    return wf.RequestStatus.CANCELLED if error.startswith(f"{CANCELLED} ") else wf.RequestStatus.FAILED


class RequestUpdate:
    """A locked request and the changes that this transaction will write."""

    def __init__(self, row: RequestRow) -> None:
        self.row = row
        known = wf.known_status(row.status)
        self.status = known or _IN_PROGRESS
        self.step = row.step
        self.error = row.error
        self.failing = None if row.error is None else _end_status(row.error)
        self.extras: bytes | None = None  # to be written; None: unchanged
        self.steps: bytes | None = None  # likewise
        self.returned_extras: list[bytes] = []
        self.spawns: list[tuple[str | None, bytes]] = []
        self.insert: list[WorkflowJob] = []
        self.graph: wf.Graph | None = None
        self.counts = wf.Counts(row.total, row.done, row.failed)
        self.pending: str | None = row.pending
        self.ends = links.Ends()
        if known is None:
            self.fail(f"Its status, {row.status!r}, is none that a request can have.")
        if row.steps is not None and (self.status is _IN_PROGRESS or row.pending == "fill"):
            self.read(row.steps)

    def read(self, steps: bytes) -> None:
        """Decode the graph; the request fails if that is impossible."""
        try:
            self.graph = wf.of_cycle(graph(steps), self.row.cycle)
        except InvalidValue as error:
            self.fail(str(error))

    def fail(self, error: str) -> None:
        """Let the request fail: waiting jobs are cancelled; the first error is kept."""
        if self.failing is None:
            self.error = one_line(error)
            self.failing = _end_status(error)

    def end(self, status: wf.RequestStatus, error: str) -> None:
        """End the request whatever the state of its jobs."""
        self.fail(error)
        self.status = status

    def add_outcome(self, outcome: Outcome) -> None:
        """Take in the outcome of one of its jobs."""
        self._add_failure(outcome)
        if self.graph is not None and self.graph.members:
            self._count_member(self.graph, outcome)
            self.ends.ended.append(outcome)
        if outcome.extras is not None:
            self.returned_extras.append(outcome.extras)
        if outcome.spawn is not None and outcome.status is Status.COMPLETED:
            self.spawns.append((outcome.name, outcome.spawn))

    def _add_failure(self, outcome: Outcome) -> None:
        if outcome.status not in (Status.FAILURE, Status.CANCELLED):
            return
        if self.graph is not None:
            stages, node = wf.Stages(self.graph), self.ends.nodes.get(outcome.name or "")
            tolerated = stages.tolerates(outcome.name) if node is None else node.on_error == "continue"
            if tolerated or stages.of(outcome.name) == "past":
                return
        who = outcome.name or outcome.handler
        if outcome.status is Status.FAILURE:
            self.fail(f'"{who}" failed: {outcome.error or outcome.reason}')
        elif outcome.reason is Reason.EXPIRED:
            self.fail(f'"{who}" expired: {outcome.error}')
        else:
            self.fail(f'{CANCELLED} with its job "{who}"')

    def _count_member(self, graph: wf.Graph, outcome: Outcome) -> None:
        if outcome.status not in ENDED or wf.Stages(graph).of(outcome.name) != "main":
            return
        total, done, failed = self.counts
        if outcome.status is Status.COMPLETED:
            self.counts = wf.Counts(total, done + 1, failed)
        else:
            self.counts = wf.Counts(total, done, failed + 1)

    @property
    def members(self) -> wf.Members | None:
        """How far its batch is, None for a request whose jobs are all in its graph."""
        if self.graph is None or not self.graph.members:
            return None
        held = self.pending in ("fill", "reopen") or (self.graph.unfolds and self.failing is None)
        return wf.Members(*self.counts, held=held)

    def check_failures(self) -> None:
        """Fail it if more of its jobs failed than may."""
        most = None if self.graph is None else self.graph.max_failures
        if most is not None and self.counts.failed > most:
            self.fail(f"{self.counts.failed} of {self.counts.total} jobs failed, max_failures is {most}")

    def merge(self) -> None:
        """Merge what its jobs returned into its extras."""
        if not self.returned_extras:
            return
        try:
            merged = wf.merge(self.row.extras, self.returned_extras)
        except InvalidValue as error:
            self.fail(f"extras: {error}")
            return
        if merged is not None and len(merged) > MAX_EXTRAS_BYTES:
            self.fail(
                f"extras: they would have {len(merged)} bytes, the limit is {MAX_EXTRAS_BYTES};"
                " return a reference instead of the data"
            )
        elif merged != self.row.extras:
            self.extras = merged

    def decide(self, states: list[wf.JobState]) -> bool:
        """Decide by the states of its jobs; True if waiting jobs must be cancelled first."""
        assert self.graph is not None
        if self.members is None:
            self.counts = wf.counts(self.graph, states)
        self.check_failures()
        members = self.members
        if members is not None and self.failing is not None and self.row.error is None and not members.over:
            self.pending = "cancel"  # in slices, by the dispatcher
        decision = wf.decide(self.graph, states, failing=self.failing, members=self.members)
        self.status, self.step = decision.status, max(decision.step, self.step)
        if self.status is wf.RequestStatus.FAILED and self.error is None:
            self.error = wf.stage_failure(self.graph, states)
        self.insert.extend(decision.insert)
        return decision.cancel_waiting

    @property
    def ended(self) -> bool:
        return self.status in wf.REQUEST_ENDED


def advance(tx: Tx, batch: ClosedBatch) -> None:
    """Advance the requests of the batch: merge extras, insert spawned jobs and further steps, end them."""
    _follow(tx, batch, move_on=True)


def record(tx: Tx, batch: ClosedBatch) -> None:
    """As `advance`, but further steps are left to the sweep."""
    _follow(tx, batch, move_on=False)


def _follow(tx: Tx, batch: ClosedBatch, *, move_on: bool) -> None:
    if not batch.requests:
        return
    updates: dict[bytes, RequestUpdate] = {}
    for ended in batch.ended:
        outcome = ended.outcome
        row = batch.requests.get(outcome.request_id) if outcome.request_id is not None else None
        if row is None:
            continue
        if row.id not in updates:
            updates[row.id] = RequestUpdate(row)
            _read_nodes(tx, updates[row.id], batch)
        updates[row.id].add_outcome(outcome)
    for item in updates.values():
        item.merge()
    batch.woken |= apply(tx, list(updates.values()), move_on=move_on)


def _read_nodes(tx: Tx, item: RequestUpdate, batch: ClosedBatch) -> None:
    if item.graph is not None and item.graph.linked:
        outcomes = [one.outcome for one in batch.ended]
        names = {one.name for one in outcomes if one.request_id == item.row.id and one.name}
        item.ends.nodes = links.nodes_of(tx, item.row, names)


def _settle(tx: Tx, item: RequestUpdate) -> set[str]:
    """In a large graph: let those begin that need what has ended, unless the request fails."""
    if item.graph is None or not item.graph.linked or not item.ends.ended:
        return set()
    row, incomplete = item.row, item.pending == "fill" or item.graph.unfolds
    settled = links.settle(
        tx, row, item.ends, item.insert, stopped=item.failing is not None, incomplete=incomplete
    )
    item.step = max(item.step, settled.step)
    if settled.more and item.pending is None:
        item.pending = "spread"
    if item.failing is None and item.pending != "reopen" and links.has_state(tx, row.id, "failed"):
        item.fail(FAILED_EARLIER)
    return settled.handlers


def apply(tx: Tx, updates: Sequence[RequestUpdate], *, move_on: bool = True) -> set[str]:
    """Decide, cancel waiting jobs, write every row, insert; returns the handlers that got new jobs."""
    alive = [update for update in updates if update.status is _IN_PROGRESS]
    woken: set[str] = set()
    found = _states(tx, alive)
    for item in alive:
        if item.graph is None and item.failing is not None:
            item.graph = wf.Graph(name=item.row.workflow, jobs=())  # unreadable: it can only end
        if item.graph is not None:
            _spawn(item, item.graph, found[item.row.id])
            woken |= _settle(tx, item)
    for item in updates:
        if item.status is wf.RequestStatus.QUEUING and item.graph is not None:
            _settle(tx, item)  # of a batch that is not complete: it begins with what has ended so far
    deciding = [
        update for update in alive if update.graph is not None and (move_on or update.failing is not None)
    ]
    # Another node may have claimed a waiting job before it was cancelled: read again, then decide.
    while deciding:
        deciding = [update for update in deciding if update.decide(found[update.row.id])]
        if deciding:
            cancel_waiting(tx, deciding)
            found = _states(tx, deciding)
    _write(tx, updates)
    over = [(u.row.id, u.status, u.graph) for u in updates if u.ended and u.graph is not None]
    tx.failed_requests += [
        u.row.id
        for u in updates
        if u.status is wf.RequestStatus.FAILED and u.row.status != wf.RequestStatus.FAILED
    ]
    intervals.close_runs(tx, over)
    return woken | _insert(tx, updates)


def _spawn(item: RequestUpdate, graph_: wf.Graph, states: list[wf.JobState]) -> None:
    stopped = item.failing is not None or (graph_.quiet and any(s.reason is Reason.IGNORED for s in states))
    if stopped:
        return
    for parent, text in item.spawns:
        try:
            made = spawned(graph_, parent, text, [s.name for s in states])
        except InvalidValue as error:
            item.fail(str(error))
            item.insert.clear()
            return
        item.insert.extend(made)
        if graph_.members:
            item.counts = item.counts._replace(total=item.counts.total + len(made))
    # Only if all are valid, so that a failing request has no waiting jobs that are not in the table.
    states.extend(wf.JobState(job.name, Status.NEW) for job in item.insert)


def _states(tx: Tx, updates: Sequence[RequestUpdate]) -> defaultdict[bytes, list[wf.JobState]]:
    """The states of their jobs; of a batch, of those in its stages alone."""
    found: defaultdict[bytes, list[wf.JobState]] = defaultdict(list)
    batches = [update for update in updates if update.members is not None]
    for update in batches:
        found[update.row.id] = stage_states(tx, update)
    for part in chunks([update.row.id for update in updates if update.members is None]):
        for request_id, name, status, reason in tx.query(
            f"SELECT request_id, name, status, reason FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
            f" WHERE request_id IN ({marks(part)}) AND status <> 'retry'",
            part,
        ):
            found[request_id].append(job_state(name, status, reason))
    return found


def count_again(tx: Tx, request_id: bytes, graph_: wf.Graph) -> None:
    """Write how many jobs of a locked request, whose jobs are all in its graph, have ended and how."""
    rows = tx.query(
        f"SELECT name, status, reason FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
        " WHERE request_id = %s AND status <> 'retry'",
        (request_id,),
    )
    counts = wf.counts(graph_, [job_state(*row) for row in rows])
    tx.execute(
        "UPDATE workerd_requests SET total = %s, done = %s, failed = %s WHERE id = %s", (*counts, request_id)
    )


def stage_states(tx: Tx, update: RequestUpdate) -> list[wf.JobState]:
    """The states of the jobs in `then` and `final` of a batch, by their keys: it may have many other jobs."""
    assert update.graph is not None
    stages = update.graph.then + update.graph.final
    ids = [wf.job_id(update.row.id, update.row.created_at, job.name) for job in stages]
    if not ids:
        return []
    rows = tx.query(
        f"SELECT name, status, reason FROM workerd_jobs WHERE id IN ({marks(ids)}) AND status <> 'retry'", ids
    )
    return [job_state(*row) for row in rows]


def job_state(name: bytes | None, status: bytes, reason: bytes | None) -> wf.JobState:
    """A job's state from its columns."""
    try:
        why = None if reason is None else Reason(columns.text(reason))
    except (ValueError, UnreadableRow):
        why = None  # written by hand; only `ignored` matters here
    return wf.JobState(columns.lenient(name), columns.job_status(status), why)


def cancel_waiting(tx: Tx, updates: Sequence[RequestUpdate]) -> None:
    """Cancel the waiting jobs of these requests, but not those of `final`, which runs in every case."""
    plain: list[bytes] = []
    for update in updates:
        spared = of_final(tx, update, ("scheduled", "new"))
        if spared:
            _cancel_waiting(tx, [update.row.id], spared)
        else:
            plain.append(update.row.id)
    cancel_all_waiting(tx, plain)


def cancel_all_waiting(tx: Tx, ids: Sequence[bytes]) -> None:
    """Cancel the waiting jobs of these requests, those of `final` too."""
    for part in chunks(ids):
        _cancel_waiting(tx, part, ())


def _cancel_waiting(tx: Tx, requests: Sequence[bytes], spared: Sequence[bytes]) -> None:
    now = columns.at(tx.now)
    tx.execute(
        f"UPDATE workerd_jobs SET status = 'cancelled', reason = 'cancelled', error = %s,"
        f" finished_at = %s, ingested_at = %s"
        f" WHERE request_id IN ({marks(requests)}) AND status IN ('scheduled','new')"
        + (f" AND id NOT IN ({marks(spared)})" if spared else ""),
        [REQUEST_OVER, now, now, *requests, *spared],
    )


def of_final(tx: Tx, update: RequestUpdate, states: Sequence[str]) -> list[bytes]:
    """The jobs of `final` in these states, and of those that they spawned."""
    if update.graph is None or not update.graph.final:
        return []
    stages = wf.Stages(update.graph)
    found = tx.query(
        f"SELECT id, name FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
        f" WHERE request_id = %s AND status IN ({marks(states)})",
        [update.row.id, *states],
    )
    return [job_id for job_id, name in found if stages.of(columns.lenient(name)) == "final"]


NEXT_VERSION = "version = CASE WHEN version < 4611686018427387904 THEN version + 1 ELSE 1 END"
"""Begins anew at 2^62: a row that another program wrote may have the largest number that the column holds."""


def _write(tx: Tx, updates: Sequence[RequestUpdate]) -> None:
    """Write every row with a new version; equal changes share a statement."""
    groups: defaultdict[tuple[str, tuple[object, ...]], list[bytes]] = defaultdict(list)
    for update in updates:
        sets, params = _changes(tx, update)
        groups[", ".join(sets), tuple(params)].append(update.row.id)
    for (change, values), ids in groups.items():
        for part in chunks(ids):
            tx.execute(f"UPDATE workerd_requests SET {change} WHERE id IN ({marks(part)})", [*values, *part])


def _changes(tx: Tx, update: RequestUpdate) -> tuple[list[str], list[object]]:
    sets = [NEXT_VERSION, "status = %s", "step = %s", "error = %s", "total = %s", "done = %s", "failed = %s"]
    error = None if update.status is wf.RequestStatus.COMPLETED else update.error
    params: list[object] = [str(update.status), update.step, error, *update.counts]
    if update.pending != update.row.pending:
        sets += ["pending = %s", "pending_after = NULL"]
        params.append(update.pending)
    for column, text in (("extras", update.extras), ("steps", update.steps)):
        if text is not None:
            sets.append(f"{column} = %s")
            params.append(text.decode())
    if update.ended:
        sets.append("completed_at = COALESCE(completed_at, %s)")
        params.append(columns.at(tx.now))
    else:
        sets.append("completed_at = NULL")
    return sets, params


def trace_meta(row: RequestRow) -> bytes | None:
    """The meta of jobs of a request that was traced."""
    return None if row.traceparent is None else msgspec.json.encode({"traceparent": row.traceparent})


def _insert(tx: Tx, updates: Sequence[RequestUpdate]) -> set[str]:
    new = [
        NewJob(
            handler=job.handler,
            # Derived from request and name, so that the primary key refuses a second one.
            id=wf.job_id(update.row.id, update.row.created_at, job.name),
            vars=msgspec.json.encode(job.vars),
            meta=trace_meta(update.row),
            request_id=update.row.id,
            step=job.step,
            name=job.name,
            run_at=waits.due_at(tx, update.row.id, job) if job.handler == WAIT_HANDLER else None,
        )
        for update in updates
        for job in update.insert
    ]
    if new:
        jobs.insert(tx, new)
    return {job.handler for job in new}
