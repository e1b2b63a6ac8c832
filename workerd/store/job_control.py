"""Cancel and retry a job, and what follows for its request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from workerd import duplicates
from workerd import workflow as wf
from workerd.clock import to_rfc3339
from workerd.config.workflow_config import WAIT_HANDLER
from workerd.errors import Conflict, InvalidValue, NotFound, StoreRefused
from workerd.job import COOLER_KEY, ENDED, ClaimedAttempt, Status
from workerd.outcome import cancelled
from workerd.store import columns, links, requests, waits, workflows
from workerd.store.base import Tx
from workerd.store.columns import RequestRow
from workerd.store.duplicates import KEY_IS_HELD, release_followers
from workerd.store.outcomes import ClosedBatch, closed_attempt
from workerd.store.session import Row
from workerd.text import word


class CurrentRow(NamedTuple):
    """The newest row of a job, as far as cancel and retry go by it."""

    id: bytes
    attempt: int
    handler: str
    status: Status
    unique_key: str | None
    request_id: bytes | None
    step: int | None
    name: str | None
    node_id: bytes | None
    cancel_requested: bool
    run_at: int

    @property
    def stands_for_request(self) -> bool:
        """Whether it is the row of a recurring workflow, whose run is a request of the same id."""
        return self.node_id is None and self.unique_key == COOLER_KEY


CURRENT_COLUMNS = (
    "id, attempt, handler, status, unique_key, request_id, step, name, node_id, cancel_requested_at, run_at"
)


def current_row(row: Row) -> CurrentRow:
    """A row selected as CURRENT_COLUMNS."""
    job_id, attempt, handler, status, key, request, step, name, node_id, cancel_requested_at, run_at = row
    text = columns.lenient
    return CurrentRow(
        job_id, attempt, text(handler) or "", columns.job_status(status), text(key), request, step,
        text(name), node_id, cancel_requested_at is not None, columns.time_or_zero(run_at),
    )  # fmt: skip


def _current(tx: Tx, job_id: bytes) -> CurrentRow:
    row = tx.one(
        f"SELECT {CURRENT_COLUMNS} FROM workerd_jobs"
        f" WHERE id = %s ORDER BY attempt DESC LIMIT 1{tx.dialect.row_lock}",
        (job_id,),
    )
    if row is None:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    return current_row(row)


def _locked(tx: Tx, job_id: bytes) -> tuple[CurrentRow, dict[bytes, RequestRow]]:
    """The job's row, locked after its request's, in the order of all locks."""
    row = tx.one("SELECT request_id FROM workerd_jobs WHERE id = %s LIMIT 1", (job_id,))
    locked = columns.lock_requests(tx, [row[0]]) if row is not None and row[0] is not None else {}
    return _current(tx, job_id), locked


def cancel(tx: Tx, job_id: bytes) -> Literal["ended", "asked"]:
    """End a waiting job now, or ask a running one to end, which its node sees at its next poll.

    The request of the job is cancelled with it. Raises NotFound, Conflict if it has ended.
    """
    job, locked = _locked(tx, job_id)
    if job.status in ENDED:
        raise Conflict(f"The job has already ended: it is {job.status}.")
    if job.status is Status.INPROGRESS:
        if job.stands_for_request:
            return "ended" if requests.cancel(tx, job_id) == "ended" else "asked"
        ask_to_stop(tx, [job])
        return "asked"
    end_waiting(tx, [job], locked)
    return "ended"


def ask_to_stop(tx: Tx, running: Sequence[CurrentRow]) -> None:
    """Ask the workers of these locked rows to stop."""
    tx.execute(
        "UPDATE workerd_jobs SET cancel_requested_at = COALESCE(cancel_requested_at, %s)"
        f" WHERE ({columns.keys([(job.id, job.attempt) for job in running])}) AND status = 'inprogress'",
        (columns.at(tx.now),),
    )


def end_waiting(tx: Tx, waiting: Sequence[CurrentRow], locked: dict[bytes, RequestRow]) -> None:
    """Cancel these locked rows, which wait; `locked`: their requests, which are cancelled with them."""
    now = columns.at(tx.now)
    tx.execute(
        "UPDATE workerd_jobs SET status = 'cancelled', reason = 'cancelled', error = %s,"
        " cancel_requested_at = %s, finished_at = %s, ingested_at = %s"
        f" WHERE {columns.keys([(job.id, job.attempt) for job in waiting])}",
        (requests.CANCELLED_BY_PERSON, now, now, now),
    )
    ended = [
        closed_attempt(cancelled(_attempt_of(job), requests.CANCELLED_BY_PERSON), b"", tx.now)
        for job in waiting
    ]
    batch = ClosedBatch(now=tx.now, requests=locked, ended=ended, released=[], woken=set())
    release_followers(tx, batch)
    workflows.advance(tx, batch)


def _attempt_of(job: CurrentRow) -> ClaimedAttempt:
    return ClaimedAttempt(
        id=job.id,
        attempt=job.attempt,
        claimed_at=0,
        handler=job.handler,
        request_id=job.request_id,
        step=job.step,
        name=job.name,
        unique_key=job.unique_key,
    )


class WaitingJob(NamedTuple):
    """A locked job that waits; `follows`: until another job of its unique key has ended.

    `held`: until its request lets it begin. `expires_at`: its own, after which it begins no more.
    """

    id: bytes
    attempt: int
    handler: str
    vars: bytes | None
    group: str | None
    follows: bool = False
    held: bool = False
    expires_at: int | None = None


def lock_waiting(tx: Tx, job_id: bytes) -> WaitingJob:
    """Lock a job that waits. Raises NotFound, Conflict for one that runs, has ended, or recurs, or a wait."""
    job, _ = _locked(tx, job_id)
    if job.status not in (Status.NEW, Status.SCHEDULED):
        raise Conflict(f"Only a job that waits can be changed: it is {job.status}.")
    if job.unique_key == COOLER_KEY:
        raise Conflict(f"The job is the next run of the schedule {job.handler!r}; change that.")
    if job.handler == WAIT_HANDLER:
        raise Conflict(_IS_A_WAIT)
    sql = "SELECT vars, group_key, expires_at FROM workerd_jobs WHERE id = %s AND attempt = %s"
    job_vars, group, expires_at = tx.one(sql, (job_id, job.attempt)) or (None, None, None)
    follows = duplicates.is_follower(job.unique_key)
    held = job.status is Status.SCHEDULED and _is_held(job)
    return WaitingJob(
        job_id, job.attempt, job.handler, job_vars, columns.lenient(group), follows, held,
        columns.lenient_time(expires_at),
    )  # fmt: skip


def change_waiting(tx: Tx, job: WaitingJob, values: Mapping[str, object], run_at: int | None) -> None:
    """Set columns of a locked job; `run_at`: store time in microseconds, None: as it is.

    Raises Conflict for another time of a job that its request holds, InvalidValue for one behind its expiry.
    """
    if run_at is not None and job.held:
        raise Conflict(_IS_HELD)
    if run_at is not None and job.expires_at is not None and run_at > job.expires_at:
        raise InvalidValue(
            f"run_at: expected a time before the job expires at {to_rfc3339(job.expires_at)},"
            f" got {to_rfc3339(run_at)}"
        )
    changed = {**values, "queue": None}  # it may belong into the queue of another group now
    if run_at is not None:
        changed["run_at"] = columns.at(run_at)
        waits = job.follows or run_at > tx.now
        changed["status"] = str(Status.SCHEDULED if waits else Status.NEW)
    sets = ", ".join(f"{name} = %s" for name in changed)
    tx.execute(
        f"UPDATE workerd_jobs SET {sets} WHERE id = %s AND attempt = %s",
        (*changed.values(), job.id, job.attempt),
    )


def handler_of(tx: Tx, job_id: bytes) -> str:
    """The handler of a job. Raises NotFound."""
    row = tx.one("SELECT handler FROM workerd_jobs WHERE id = %s LIMIT 1", (job_id,))
    if row is None:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    return columns.lenient(row[0]) or ""


def retry(tx: Tx, job_id: bytes, *, fresh: bool = False) -> int:
    """Run an ended job again, or a scheduled one now; returns the number of the attempt that will run.

    `fresh`: without what earlier attempts have saved.

    The ended row becomes `retry` and keeps its reason; the next starts with its counters at 0. A job of an
    ended request reopens it. Raises NotFound, Conflict while the job is live or its unique key is held.
    """
    job, locked = _locked(tx, job_id)
    if job.status is Status.SCHEDULED:
        if (obstacle := waits_for(job)) is not None:
            raise Conflict(obstacle)
        make_due(tx, [job], fresh=fresh)
        return job.attempt
    if job.status not in ENDED:
        raise Conflict(f"The job is live ({job.status}); cancel it first, or wait until it ends.")
    if job.unique_key == COOLER_KEY and _stands_for_a_request(tx, job_id):
        raise Conflict(
            f"The row stands for a run of the recurring workflow {job.handler!r}, whose next run is its"
            f" retry; `workerd schedules run {word(job.handler)}` starts it now."
        )
    request = locked.get(job.request_id) if job.request_id is not None else None
    if request is None:
        again(tx, job_id, job.attempt, fresh=fresh)
        return job.attempt + 1
    graph = _graph_to_continue(request)
    linked = graph is not None and graph.linked
    waited = linked and _was_cancelled_with_its_request(tx, job)
    again(tx, job_id, job.attempt, fresh=fresh)
    _wait_again(tx, request, graph, job_id, job.name)
    if linked:
        if not waited:
            links.reopen(tx, request, job.name)
        links.hold(tx, request, [job_id])
    _reopen(tx, request, graph, job_id, _member_status(request, job))
    return job.attempt + 1


def waits_for(job: CurrentRow) -> str | None:
    """Why a scheduled job is not to be made due by hand; None if it waits for its time alone."""
    if duplicates.is_follower(job.unique_key):
        return "The job waits until another job of its unique key has ended; cancel that one first."
    if job.handler == WAIT_HANDLER:
        return _IS_A_WAIT
    return _IS_HELD if _is_held(job) else None


def _is_held(job: CurrentRow) -> bool:
    return job.request_id is not None and job.run_at == links.HELD_AT


_IS_HELD = "The job waits for the rest of its request, or for jobs that it needs."
_IS_A_WAIT = "The job is a wait of its request: it ends at its time, or with its signal."


def _was_cancelled_with_its_request(tx: Tx, job: CurrentRow) -> bool:
    found = tx.one(
        "SELECT 1 FROM workerd_jobs WHERE id = %s AND attempt = %s AND status = 'cancelled' AND error = %s",
        (job.id, job.attempt, workflows.REQUEST_OVER),
    )
    return found is not None


def make_due(tx: Tx, scheduled: Sequence[CurrentRow], *, fresh: bool = False) -> None:
    """Make these locked rows, which are scheduled, due now."""
    tx.execute(
        f"UPDATE workerd_jobs SET status = 'new', run_at = %s{', state = NULL' if fresh else ''}"
        f" WHERE {columns.keys([(job.id, job.attempt) for job in scheduled])}",
        (columns.at(tx.now),),
    )


def _stands_for_a_request(tx: Tx, job_id: bytes) -> bool:
    return tx.one("SELECT 1 FROM workerd_requests WHERE id = %s", (job_id,)) is not None


def _insert_retries(refs: Sequence[tuple[bytes, int]], keep: str = "") -> str:
    return columns.INSERT_NEXT.format(
        status="'new'",
        run_at="%s",
        created_at="%s",
        failures=0,
        crashes=0,
        losses=0,
        state="CASE WHEN %s THEN NULL ELSE j.state END",
        source=f"workerd_jobs AS j WHERE ({columns.keys(refs)})",
        keep=keep,
    )


_KEY_HELD = "Another live job of the handler holds the unique key; wait until it ends."


def again(tx: Tx, job_id: bytes, attempt: int, *, fresh: bool = False) -> None:
    """Insert the attempt after an ended one, which becomes `retry`. Raises Conflict if its key is held.

    `fresh`: without what earlier attempts have saved.
    """
    now = columns.at(tx.now)
    try:
        tx.execute(_insert_retries([(job_id, attempt)]), (now, now, fresh))
    except StoreRefused as error:
        if error.code in KEY_IS_HELD:
            raise Conflict(_KEY_HELD) from None
        raise
    tx.execute("UPDATE workerd_jobs SET status = 'retry' WHERE id = %s AND attempt = %s", (job_id, attempt))


def all_again(tx: Tx, ended: Sequence[CurrentRow], *, fresh: bool = False) -> list[CurrentRow]:
    """As `again`, for many locked rows; returns them without those whose key is held."""
    refs = [(job.id, job.attempt) for job in ended]
    now, keep = columns.at(tx.now), tx.dialect.keep_existing("workerd_jobs.id")
    done = list(ended)
    if tx.execute(_insert_retries(refs, keep), (now, now, fresh)) < len(refs):
        following = columns.keys([(job_id, attempt + 1) for job_id, attempt in refs])
        there = {row[0] for row in tx.query(f"SELECT id FROM workerd_jobs WHERE {following}")}
        done = [job for job in ended if job.id in there]
    if done:
        keys = columns.keys([(job.id, job.attempt) for job in done])
        tx.execute(f"UPDATE workerd_jobs SET status = 'retry' WHERE {keys}")
    return done


def _member_status(request: RequestRow, job: CurrentRow) -> Status | None:
    """How a job that its batch counts has ended, None for any other job."""
    if request.steps is None:
        return None
    try:
        graph = wf.of_cycle(workflows.graph(request.steps), request.cycle)
    except InvalidValue:
        return None
    return job.status if graph.members and wf.Stages(graph).of(job.name) == "main" else None


def _graph_to_continue(row: RequestRow) -> wf.Graph | None:
    """The graph of a request that is to be reopened; None if it has none yet.

    Raises Conflict for a workflow with an interval: its next run is its retry.
    """
    if row.steps is None:
        return None
    try:
        graph = wf.of_cycle(workflows.graph(row.steps), row.cycle)
    except InvalidValue as error:
        raise Conflict(f"The job's request cannot continue: {error}.") from None
    if graph.cooler is not None:
        raise Conflict(
            f"The job belongs to a run of the recurring workflow {row.workflow!r}, whose next run is its "
            f"retry; `workerd schedules run {word(row.workflow)}` starts it now."
        )
    return graph


def _reopen(
    tx: Tx, row: RequestRow, graph: wf.Graph | None, retried: bytes, retried_status: Status | None
) -> None:
    """Continue an ended request; jobs cancelled only because it ended are retried beside `retried`.

    `retried_status`: of a job that its batch counts, how it had ended.
    """
    if row.status == wf.RequestStatus.QUEUING:
        return
    members = graph is not None and graph.members
    tx.execute(
        "UPDATE workerd_requests SET status = 'inprogress', error = NULL, completed_at = NULL, cycle = %s,"
        " done = %s, failed = %s, pending = %s, pending_after = NULL, version = version + 1 WHERE id = %s",
        (
            row.cycle + int(graph is not None and _runs_final_again(tx, row, graph, retried)),
            *_counts_without(row, members, retried_status),
            "reopen" if members else None,
            row.id,
        ),
    )
    if members:
        return  # those that were cancelled with it are retried in slices
    for job_id, attempt, name in tx.query(
        "SELECT id, attempt, name FROM workerd_jobs WHERE request_id = %s AND status = 'cancelled'"
        " AND error = %s AND id <> %s ORDER BY id, attempt",
        (row.id, workflows.REQUEST_OVER, retried),
    ):
        if graph is None or wf.Stages(graph).of(columns.lenient(name)) in ("main", "then"):
            again(tx, job_id, attempt)
            _wait_again(tx, row, graph, job_id, columns.lenient(name))
    if graph is not None:
        workflows.count_again(tx, row.id, graph)


def _wait_again(tx: Tx, row: RequestRow, graph: wf.Graph | None, job_id: bytes, name: str | None) -> None:
    """If the job that was made `new` again is a wait of the graph, it waits from now on."""
    for job in graph.all_jobs if graph is not None else ():
        if job.name == name and job.handler == WAIT_HANDLER:
            waits.begin_again(tx, row.id, job_id, job)


def _counts_without(row: RequestRow, members: bool, status: Status | None) -> tuple[int, int]:
    """The jobs of a batch that succeeded and failed, without the one that is retried."""
    if not members or status is None:
        return row.done, row.failed
    if status is Status.COMPLETED:
        return max(0, row.done - 1), row.failed
    return row.done, max(0, row.failed - 1)


def _runs_final_again(tx: Tx, row: RequestRow, graph: wf.Graph, retried: bytes) -> bool:
    """Whether `final` has begun: it runs again at the new end, under names of its own."""
    ids = [wf.job_id(row.id, row.created_at, job.name) for job in graph.final]
    if not ids or retried in ids:
        return False
    found = tx.one(f"SELECT 1 FROM workerd_jobs WHERE id IN ({columns.marks(ids)}) LIMIT 1", ids)
    return found is not None
