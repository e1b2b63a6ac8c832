"""Ticks: each one of a schedule starts one job or request in the cluster, or is skipped, whatever crashes.

The transaction that advances `last_tick` inserts what the tick starts, and keeps the tick as history.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.clock import SECOND
from workerd.config.quantities import duration
from workerd.config.schedule_config import NamedSchedule
from workerd.errors import InvalidValue
from workerd.job import ENDED, new_id
from workerd.job_spec import NewJob
from workerd.store import columns, intervals, jobs, requests
from workerd.store.base import Tx
from workerd.store.columns import chunks, marks

MAX_HISTORY = 20
"""Ticks of each schedule that are kept."""
MAX_FORGOTTEN = 100
"""Older ones that one tick removes."""


class Fired(StrEnum):
    """The result of a tick."""

    FIRED = "fired"
    TAKEN = "taken"  # by another node, or the schedule changed
    SKIPPED = "skipped"  # the last run is not over
    HELD = "held"  # the last run is not over: try again
    PAUSED = "paused"
    GONE = "gone"  # the schedule is not in the store


class Tick(NamedTuple):
    """`job`: the id of the inserted job, or of the request if the schedule is a workflow's.

    `due`: of a cooler that did not fire, when to try again, None while it runs.
    """

    fired: Fired
    job: bytes | None = None
    due: int | None = None


class _State(NamedTuple):
    """What a tick needs of the row."""

    last_tick: int | None
    last_job: bytes | None
    paused: bool
    revision: int


def _state(tx: Tx, name: str) -> _State | None:
    row = tx.one(
        "SELECT last_tick, last_job, paused_at, revision FROM workerd_schedules WHERE name = %s", (name,)
    )
    if row is None:
        return None
    return _State(columns.lenient_time(row[0]), row[1], row[2] is not None, int(row[3]))


def tick(
    tx: Tx, schedule: NamedSchedule, moment: int, *, void: int | None = None, revision: int | None = None
) -> Tick:
    """Fire one tick of a cron, once in the cluster: insert its job, or its request if it is a workflow's.

    `void`: a `last_tick` that does not count, since the store's clock was set back after it. `revision`: of
    the row that `schedule` was read from, if it was; a changed one does not fire.
    """
    state = _state(tx, schedule.name)
    if state is None:
        return Tick(Fired.GONE)
    if state.paused:
        return Tick(Fired.PAUSED)
    if state.last_tick is not None and state.last_tick >= moment and state.last_tick != void:
        return Tick(Fired.TAKEN)
    if revision is not None and revision != state.revision:
        return Tick(Fired.TAKEN)
    busy = schedule.overlap != "allow" and state.last_job is not None and not _over(tx, state.last_job)
    if busy and schedule.overlap == "queue":
        return Tick(Fired.HELD)
    made = None if busy else new_id()
    if not _moved(tx, schedule.name, state, moment, made or state.last_job, void):
        return Tick(Fired.TAKEN)
    _remember(tx, schedule.name, moment, made)
    if made is None:
        return Tick(Fired.SKIPPED)
    _insert(tx, schedule, made, moment + jitter_us(schedule, moment))
    return Tick(Fired.FIRED, made)


def _moved(tx: Tx, name: str, state: _State, moment: int, job: bytes | None, void: int | None) -> bool:
    """Advance `last_tick`, only if the row is as it was read: `last_job` decided about the overlap."""
    same = tx.dialect.null_safe_equal
    return bool(
        tx.execute(
            "UPDATE workerd_schedules SET last_tick = %s, last_job = %s WHERE name = %s"
            f" AND (last_tick IS NULL OR last_tick < %s OR last_tick = %s) AND last_job {same} %s"
            " AND paused_at IS NULL AND revision = %s",
            (
                columns.at(moment),
                job,
                name,
                columns.at(moment),
                None if void is None else columns.at(void),
                state.last_job,
                state.revision,
            ),
        )
    )


def jitter_us(schedule: NamedSchedule, moment: int) -> int:
    """How much later this tick starts: the same on every node, evenly spread over schedules and ticks."""
    if not schedule.jitter:
        return 0
    mixed = hashlib.blake2b(f"{schedule.name}\0{moment}".encode(), digest_size=8).digest()
    return int(int.from_bytes(mixed) / 2**64 * schedule.jitter * SECOND)


def start(tx: Tx, schedule: NamedSchedule) -> bytes:
    """Start what the schedule starts, now and beside its ticks; the id of the job or request."""
    made = new_id()
    _insert(tx, schedule, made, None)
    return made


def start_interval(tx: Tx, name: str) -> bytes | None:
    """Start the live run of a handler's own interval; None if it has one."""
    made = new_id()
    return made if intervals.insert_run(tx, name, made, run_at=tx.now) else None


def _insert(tx: Tx, schedule: NamedSchedule, made: bytes, due: int | None) -> None:
    if schedule.workflow:
        begins_at = due if due is not None and due > tx.now else None
        requests.submit(
            tx, schedule.workflow, msgspec.json.encode(schedule.params), made, begins_at=begins_at
        )
        return
    job = NewJob(
        handler=schedule.handler,
        id=made,
        run_at=due,
        vars=msgspec.json.encode(schedule.vars),
        priority=schedule.priority,
        group_key=schedule.group or None,
    )
    jobs.insert(tx, [job])


# -- intervals by name ------------------------------------------------------------------------------


def pause_us(expression: str) -> int:
    """The pause of an interval; of text that is none, which another program wrote, an hour."""
    try:
        return round(duration(expression) * SECOND)
    except InvalidValue:
        return 3600 * SECOND


def run_cooler(tx: Tx, schedule: NamedSchedule, *, now: bool = False, revision: int | None = None) -> Tick:
    """Start the next run of an interval by name if it is due: its pause after the end of the last one.

    `now`: due or not, paused or not.
    """
    state = _state(tx, schedule.name)
    if state is None:
        return Tick(Fired.GONE)
    if revision is not None and revision != state.revision:
        return Tick(Fired.TAKEN)
    if state.paused and not now:
        return Tick(Fired.PAUSED)
    last = last_runs(tx, [state.last_job])[state.last_job] if state.last_job is not None else None
    if last is not None and not last.over:
        return Tick(Fired.HELD)
    if last is not None and not now:
        ended_at = last.ended_at or state.last_tick or 0
        due = min(ended_at, tx.now) + int((schedule.cooler or 0) * SECOND)
        if due > tx.now:
            return Tick(Fired.HELD, due=due)
    made = new_id()
    same = tx.dialect.null_safe_equal
    changed = tx.execute(
        "UPDATE workerd_schedules SET last_tick = %s, last_job = %s WHERE name = %s"
        f" AND last_job {same} %s AND revision = %s",
        (columns.at(tx.now), made, schedule.name, state.last_job, state.revision),
    )
    if not changed:
        return Tick(Fired.TAKEN)
    _remember(tx, schedule.name, tx.now, made)
    _insert(tx, schedule, made, tx.now)
    return Tick(Fired.FIRED, made)


# -- what was started -------------------------------------------------------------------------------


class Run(NamedTuple):
    """A job or request that a tick started. `run_us`: of a request from its creation to its end."""

    status: str
    over: bool
    ended_at: int | None
    run_us: int | None


GONE = Run("removed", True, None, None)
"""What retention has removed."""


def last_runs(tx: Tx, ids: Collection[bytes]) -> dict[bytes, Run]:
    """The states of these jobs and requests, each of which is in the result."""
    found: dict[bytes, Run] = {}
    for part in chunks(sorted(ids)):
        for row in tx.query(
            "SELECT id, status, COALESCE(finished_at, ingested_at), run_us FROM workerd_jobs"
            f" WHERE id IN ({marks(part)}) AND status <> 'retry'",
            part,
        ):
            status = columns.lenient(row[1]) or ""
            found[row[0]] = Run(status, status in ENDED, columns.lenient_time(row[2]), row[3])
    for part in chunks(sorted(set(ids) - found.keys())):
        for row in tx.query(
            f"SELECT id, status, created_at, completed_at FROM workerd_requests WHERE id IN ({marks(part)})",
            part,
        ):
            status, ended_at = columns.lenient(row[1]) or "", columns.lenient_time(row[3])
            took = None if ended_at is None else ended_at - columns.time_or_zero(row[2])
            found[row[0]] = Run(status, status in wf.REQUEST_ENDED, ended_at, took)
    return {made: found.get(made, GONE) for made in ids}


def _over(tx: Tx, made: bytes) -> bool:
    """Whether the job or request of a tick has ended or was removed."""
    return last_runs(tx, [made])[made].over


# -- history ----------------------------------------------------------------------------------------


class PastTick(NamedTuple):
    """A tick, and what it started; of one that was skipped `job_id` is None."""

    tick: int
    job_id: bytes | None
    status: str
    run_us: int | None


def history(tx: Tx, name: str) -> list[PastTick]:
    """The last ticks of a schedule, the newest first."""
    rows = tx.query(
        "SELECT tick, job_id FROM workerd_ticks WHERE name = %s ORDER BY tick DESC LIMIT %s",
        (name, MAX_HISTORY),
    )
    runs = last_runs(tx, [row[1] for row in rows if row[1] is not None])
    return [_past(columns.time_or_zero(moment), made, runs.get(made, GONE)) for moment, made in rows]


def _past(moment: int, made: bytes | None, run: Run) -> PastTick:
    if made is None:
        return PastTick(moment, None, str(Fired.SKIPPED), None)
    return PastTick(moment, made, run.status, run.run_us)


def _remember(tx: Tx, name: str, moment: int, made: bytes | None) -> None:
    tx.execute(
        "INSERT INTO workerd_ticks (name, tick, job_id) VALUES (%s, %s, %s)"
        + tx.dialect.keep_existing("name"),
        (name, columns.at(moment), made),
    )
    old = tx.query(
        f"SELECT tick FROM workerd_ticks WHERE name = %s ORDER BY tick DESC LIMIT {MAX_FORGOTTEN} OFFSET %s",
        (name, MAX_HISTORY),
    )
    if old:
        # By their keys: a range would lock what lies between them.
        times = [columns.lenient(row[0]) for row in old]
        tx.execute(f"DELETE FROM workerd_ticks WHERE name = %s AND tick IN ({marks(times)})", [name, *times])


def forget(tx: Tx, names: Sequence[str] | Iterable[str]) -> None:
    """Remove the history of schedules that were removed."""
    gone = sorted(set(names))
    if gone:
        tx.execute(f"DELETE FROM workerd_ticks WHERE name IN ({marks(gone)})", gone)
