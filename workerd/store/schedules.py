"""Schedules: each tick of a `cron` fires once in the cluster, each `cooler` has one live run.

`last_tick` says up to which tick a schedule is processed. The transaction that advances it inserts the job or
the request, so that each tick has exactly one, or is skipped, whatever crashes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.clock import SECOND
from workerd.config.model import Config, Overlap
from workerd.config.model import ScheduleConfig as Wanted
from workerd.errors import Conflict, NotFound
from workerd.job import ENDED, Status, new_id
from workerd.job_spec import NewJob
from workerd.store import columns, intervals, jobs, nodes, requests
from workerd.store.base import Row, Tx
from workerd.store.columns import marks

Kind = Literal["cron", "cooler"]


class ScheduleRow(msgspec.Struct, kw_only=True):
    """A schedule.

    last_tick
        Ticks up to here are processed.
    last_job
        The job or request of the last tick.
    next_at
        When an interval runs next, None while it runs; the ticks of a cron follow from its expression.
    own_pause_s
        The pause before the waiting run of an interval, where `cooler()` of its class decided it.
    last_status, last_end
        Those of `last_job`, or of the last run of an interval.
    """

    name: str
    kind: Kind
    expression: str
    timezone: str
    last_tick: int | None
    last_job: bytes | None
    paused_at: int | None
    paused_by: str | None
    next_at: int | None = None
    last_status: str | None = None
    last_end: int | None = None
    own_pause_s: float | None = None


class Fired(StrEnum):
    """The result of a tick."""

    FIRED = "fired"
    TAKEN = "taken"  # by another node, or the schedule changed
    SKIPPED = "skipped"  # the last run is not over
    HELD = "held"  # the last run is not over: try again
    PAUSED = "paused"
    GONE = "gone"  # the schedule is not in the store


class Tick(NamedTuple):
    """`job`: the id of the inserted job, or of the request if the schedule is a workflow's."""

    fired: Fired
    job: bytes | None = None


def wanted(config: Config) -> dict[str, Wanted]:
    """The schedules of a configuration, by the name of handler or workflow."""
    all_ = {h.name: h.schedule for h in config.handlers.values()}
    all_ |= {w.name: w.schedule for w in config.workflows.values()}
    return {name: schedule for name, schedule in all_.items() if schedule.recurs}


_COLUMNS = "name, kind, expression, timezone, last_tick, last_job, paused_at, paused_by"


def _schedule(row: Row) -> ScheduleRow:
    name, kind, expression, timezone, last_tick, last_job, paused_at, paused_by = row
    return ScheduleRow(
        name=columns.lenient(name) or "",
        kind="cooler" if kind == b"cooler" else "cron",
        expression=columns.lenient(expression) or "",
        timezone=columns.lenient(timezone) or "",
        last_tick=columns.lenient_time(last_tick),
        last_job=last_job,
        paused_at=None if paused_at is None else columns.time_or_zero(paused_at),
        paused_by=columns.lenient(paused_by),
    )


def find(tx: Tx, name: str, *, lock: bool = False) -> ScheduleRow:
    """One schedule's row. Raises NotFound."""
    row = tx.one(
        f"SELECT {_COLUMNS} FROM workerd_schedules WHERE name = %s" + (tx.dialect.row_lock if lock else ""),
        (name,),
    )
    if row is None:
        raise NotFound(f"Schedule {name!r} not found. `workerd schedules` lists existing schedules.")
    return _schedule(row)


def find_all(tx: Tx, names: Collection[str]) -> dict[str, ScheduleRow]:
    """Those of the schedules that the store has, by the given name, in one statement."""
    if not names:
        return {}
    # MySQL also finds a row whose name ends in spaces, and lets no other row have the name without them.
    given = {name.rstrip(" "): name for name in names}
    sql = f"SELECT {_COLUMNS} FROM workerd_schedules WHERE name IN ({marks(list(names))})"
    return {given[row.name.rstrip(" ")]: row for row in map(_schedule, tx.query(sql, list(names)))}


# -- sync with the configuration ---------------------------------------------------------------


def upsert(tx: Tx, schedules: Mapping[str, Wanted]) -> list[str]:
    """Write the configured schedules; returns the names of those added or changed.

    A new or changed schedule starts now: earlier ticks are not missed ones, and a waiting run waits for the
    new interval. A pause outlives a change.
    """
    there = find_all(tx, schedules)
    changed = []
    for name, schedule in sorted(schedules.items()):
        kind, expression, timezone = described(schedule)
        row = there.get(name)
        if row is None:
            tx.execute(
                "INSERT INTO workerd_schedules (name, kind, expression, timezone, last_tick)"
                " VALUES (%s, %s, %s, %s, %s)" + tx.dialect.keep_existing("name"),
                (name, kind, expression, timezone, columns.at(tx.now)),
            )
        elif (row.kind, row.expression, row.timezone) != (kind, expression, timezone):
            tx.execute(
                "UPDATE workerd_schedules SET kind = %s, expression = %s, timezone = %s, last_tick = %s"
                " WHERE name = %s",
                (kind, expression, timezone, columns.at(tx.now), name),
            )
            if row.kind == "cooler":
                intervals.remove_scheduled(tx, name)
        else:
            continue
        changed.append(name)
    return changed


def described(schedule: Wanted) -> tuple[Kind, str, str]:
    """Kind, expression and timezone as the columns hold them: `30s` for an interval."""
    if schedule.cooler is not None:
        return "cooler", f"{schedule.cooler:g}s", "UTC"
    return "cron", schedule.cron, schedule.timezone


def orphans(tx: Tx, own: Iterable[str]) -> list[str]:
    """Schedules that no node has in its configuration.

    Nodes publish theirs in `schedules` of their `info`; while one has not, no schedule counts as an orphan.
    A node counts until it was found dead and its row removed: its lease alone may look over when the store's
    clock was set.
    """
    had = {columns.lenient(row[0]) or "" for row in tx.query("SELECT name FROM workerd_schedules")} - set(own)
    if not had:
        return []
    for node in nodes.list_(tx):
        published = node.published.schedules
        if published is None:
            return []
        had -= set(published)
    return sorted(had)


def retire(tx: Tx, names: Iterable[str]) -> int:
    """Remove schedules that are no longer configured, and their waiting runs."""
    gone = sorted(set(names))
    if not gone:
        return 0
    removed = tx.execute(f"DELETE FROM workerd_schedules WHERE name IN ({marks(gone)})", gone)
    for name in gone:
        intervals.remove_waiting(tx, name)
    return removed


# -- ticks -------------------------------------------------------------------------------------


def tick(
    tx: Tx,
    name: str,
    moment: int,
    *,
    overlap: Overlap = "allow",
    workflow: bool = False,
    void: int | None = None,
) -> Tick:
    """Fire one tick, once in the cluster: insert its job, or its request if it is a workflow's.

    `void`: a `last_tick` that does not count, since the store's clock was set back after it.
    """
    row = tx.one(f"SELECT {_COLUMNS} FROM workerd_schedules WHERE name = %s", (name,))
    if row is None:
        return Tick(Fired.GONE)
    schedule = _schedule(row)
    if schedule.paused_at is not None:
        return Tick(Fired.PAUSED)
    if schedule.last_tick is not None and schedule.last_tick >= moment and schedule.last_tick != void:
        return Tick(Fired.TAKEN)
    busy = overlap != "allow" and schedule.last_job is not None and not _over(tx, schedule.last_job)
    if busy and overlap == "queue":
        return Tick(Fired.HELD)
    made = None if busy else new_id()
    if not _moved(tx, schedule, moment, made or schedule.last_job, void):
        return Tick(Fired.TAKEN)
    if made is None:
        return Tick(Fired.SKIPPED)
    if workflow:
        requests.submit(tx, name, b"{}", made)
    else:
        jobs.insert(tx, [NewJob(handler=name, id=made, run_at=moment)])
    return Tick(Fired.FIRED, made)


def _moved(tx: Tx, schedule: ScheduleRow, moment: int, job: bytes | None, void: int | None) -> bool:
    """Advance `last_tick`, only if `last_job`, by which the overlap was decided, is unchanged."""
    same = tx.dialect.null_safe_equal
    return bool(
        tx.execute(
            "UPDATE workerd_schedules SET last_tick = %s, last_job = %s WHERE name = %s"
            f" AND (last_tick IS NULL OR last_tick < %s OR last_tick = %s) AND last_job {same} %s"
            " AND paused_at IS NULL",
            (
                columns.at(moment),
                job,
                schedule.name,
                columns.at(moment),
                None if void is None else columns.at(void),
                schedule.last_job,
            ),
        )
    )


def _over(tx: Tx, made: bytes) -> bool:
    """Whether the job or request of a tick has ended or was removed."""
    job = _last_row(tx, made)
    if job is not None:
        return job[0] in ENDED
    row = tx.one("SELECT status FROM workerd_requests WHERE id = %s", (made,))
    return row is None or columns.lenient(row[0]) in wf.REQUEST_ENDED


def _last_row(tx: Tx, job_id: bytes) -> tuple[str, int | None] | None:
    row = tx.one(
        "SELECT status, COALESCE(finished_at, ingested_at) FROM workerd_jobs WHERE id = %s"
        " ORDER BY attempt DESC LIMIT 1",
        (job_id,),
    )
    return None if row is None else (columns.lenient(row[0]) or "", columns.lenient_time(row[1]))


# -- pause, resume, run ------------------------------------------------------------------------


def pause(tx: Tx, name: str, by: str) -> None:
    """Fire no tick and start no run until `resume`; running jobs finish. Raises NotFound."""
    schedule = find(tx, name, lock=True)
    tx.execute(
        "UPDATE workerd_schedules SET paused_at = COALESCE(paused_at, %s), paused_by = %s WHERE name = %s",
        (columns.at(tx.now), by[:191], name),
    )
    if schedule.kind == "cooler":
        intervals.remove_waiting(tx, name)


def resume(tx: Tx, name: str) -> bool:
    """Continue from now: ticks during the pause are not missed. False if not paused. Raises NotFound."""
    schedule = find(tx, name, lock=True)
    if schedule.paused_at is None:
        return False
    tx.execute(
        "UPDATE workerd_schedules SET paused_at = NULL, paused_by = NULL, last_tick = %s WHERE name = %s",
        (columns.at(max(tx.now, schedule.last_tick or 0)), name),
    )
    if schedule.kind == "cooler":
        intervals.ensure_next(tx, name, 0)
    return True


def run_now(tx: Tx, name: str, *, workflow: bool = False) -> bytes:
    """Run once now, paused or not; returns the id of the job or request. Raises NotFound, Conflict.

    The waiting run of an interval becomes due now, and the interval starts over from its end.
    """
    schedule = find(tx, name, lock=True)
    if schedule.kind == "cron":
        if workflow:
            return requests.submit(tx, name, b"{}").id
        return jobs.insert(tx, [NewJob(handler=name)])[0].id
    if intervals.make_due(tx, name):
        run = intervals.live_run(tx, name)
        assert run is not None
        return run.id
    if intervals.live_run(tx, name) is not None:
        raise _already_running(name)
    if workflow:
        return requests.submit(tx, name, b"{}").id
    made = new_id()
    if not intervals.insert_run(tx, name, made, run_at=tx.now):
        raise _already_running(name)
    return made


def _already_running(name: str) -> Conflict:
    return Conflict(f"{name!r} is already running; the next run starts one interval after its end.")


# -- lists -----------------------------------------------------------------------------------


def list_(tx: Tx) -> list[ScheduleRow]:
    """All schedules by name, with the state of their last runs."""
    rows = tx.query(f"SELECT {_COLUMNS} FROM workerd_schedules ORDER BY name")
    return [_with_last(tx, _schedule(row)) for row in rows]


def list_with_next(tx: Tx) -> list[ScheduleRow]:
    """All schedules by name, without their last runs: of an interval with the time of its waiting run."""
    rows = [_schedule(row) for row in tx.query(f"SELECT {_COLUMNS} FROM workerd_schedules ORDER BY name")]
    for row in rows:
        if row.kind == "cooler":
            row.next_at = _waiting_run_at(tx, row.name)
    return rows


def _waiting_run_at(tx: Tx, name: str) -> int | None:
    run = intervals.live_run(tx, name)
    return None if run is None or run.status is Status.INPROGRESS else run.run_at


def _own_pause_s(row: ScheduleRow, run: intervals.LiveRun) -> float | None:
    """The pause before a waiting run where it is not the one that the key says."""
    if run.status is not Status.SCHEDULED or run.attempt > 1:
        return None
    pause_s = (run.run_at - run.created_at) / SECOND
    # A run inserted after a change or a crash counts from the last end.
    since_end_s = (run.run_at - (row.last_end or run.created_at)) / SECOND
    return None if row.expression in (f"{pause_s:g}s", f"{since_end_s:g}s") else pause_s


def _with_last(tx: Tx, row: ScheduleRow) -> ScheduleRow:
    if row.kind == "cooler":
        run = intervals.live_run(tx, row.name)
        last = intervals.last_run(tx, row.name)
        if last is not None:
            row.last_job, row.last_status, row.last_end = last
        if run is not None and run.status is not Status.INPROGRESS:
            row.next_at = run.run_at
            row.own_pause_s = _own_pause_s(row, run)
    elif row.last_job is not None:
        job = _last_row(tx, row.last_job)
        if job is not None:
            row.last_status, row.last_end = job
        else:
            found = tx.one("SELECT status, completed_at FROM workerd_requests WHERE id = %s", (row.last_job,))
            if found is not None:
                row.last_status = columns.lenient(found[0])
                row.last_end = columns.lenient_time(found[1])
    return row
