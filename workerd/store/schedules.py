"""Schedules as rows: those of configurations and those that were set at run time.

`last_tick` says up to which tick a schedule is processed; `ticks` advances it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import msgspec

from workerd.clock import SECOND
from workerd.config.model import Config
from workerd.config.quantities import duration
from workerd.config.schedule_config import NamedSchedule, ScheduleConfig
from workerd.errors import Conflict, InvalidValue, NotFound
from workerd.job import Status
from workerd.store import columns, intervals, nodes, ticks
from workerd.store.base import Tx
from workerd.store.columns import marks
from workerd.store.session import Row

Kind = Literal["cron", "cooler"]
Origin = Literal["config", "api"]

MAX_SET = 10_000
"""Schedules that may be set at run time: every node keeps each of them."""


class ScheduleRow(msgspec.Struct, kw_only=True):
    """A schedule.

    last_tick
        Ticks up to here are processed.
    last_job
        The job or request of the last tick.
    handler, workflow
        Its target; both None for the short form, whose target has the schedule's name.
    revision
        Of the last change at run time.
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
    origin: Origin = "config"
    handler: str | None = None
    workflow: str | None = None
    vars: bytes | None = None
    params: bytes | None = None
    misfire: str | None = None
    overlap: str | None = None
    jitter_ms: int | None = None
    priority: int = 0
    group_key: str | None = None
    enabled: bool = True
    revision: int = 0
    next_at: int | None = None
    last_status: str | None = None
    last_end: int | None = None
    own_pause_s: float | None = None

    @property
    def jitter(self) -> float | None:
        """In seconds."""
        return None if self.jitter_ms is None else self.jitter_ms / 1000

    @property
    def own(self) -> bool:
        """Whether it is the short form, in the table of its handler or workflow."""
        return self.handler is None and self.workflow is None


def wanted(config: Config) -> dict[str, NamedSchedule]:
    """The schedules of a configuration, by name."""
    handlers = (short_form(h.name, h.schedule) for h in config.handlers.values() if h.schedule.recurs)
    workflows = (
        short_form(w.name, w.schedule, workflow=True) for w in config.workflows.values() if w.schedule.recurs
    )
    return {s.name: s for s in (*handlers, *workflows)} | config.schedules


def short_form(name: str, schedule: ScheduleConfig, *, workflow: bool = False) -> NamedSchedule:
    """The `cron` or `cooler` in the table of a handler or workflow."""
    return NamedSchedule(
        name=name,
        own=True,
        handler="" if workflow else name,
        workflow=name if workflow else "",
        **msgspec.structs.asdict(schedule),
    )


_COLUMNS = (
    "name, kind, expression, timezone, last_tick, last_job, paused_at, paused_by, origin, handler, workflow,"
    " vars, params, misfire, overlap, jitter_ms, priority, group_key, enabled, revision"
)


def _schedule(row: Row) -> ScheduleRow:
    text = columns.lenient
    return ScheduleRow(
        name=text(row[0]) or "",
        kind="cooler" if row[1] == b"cooler" else "cron",
        expression=text(row[2]) or "",
        timezone=text(row[3]) or "",
        last_tick=columns.lenient_time(row[4]),
        last_job=row[5],
        paused_at=None if row[6] is None else columns.time_or_zero(row[6]),
        paused_by=text(row[7]),
        origin="api" if row[8] == b"api" else "config",
        handler=text(row[9]),
        workflow=text(row[10]),
        vars=row[11],
        params=row[12],
        misfire=text(row[13]),
        overlap=text(row[14]),
        jitter_ms=row[15],
        priority=row[16],
        group_key=text(row[17]),
        enabled=bool(row[18]),
        revision=row[19],
    )


def definition(row: ScheduleRow) -> NamedSchedule:
    """What a named schedule's row says. Raises InvalidValue for a value that no program of ours writes."""
    try:
        values = msgspec.convert(
            {
                "cron": row.expression if row.kind == "cron" else "",
                "cooler": duration(row.expression) if row.kind == "cooler" else None,
                "timezone": row.timezone,
                "misfire": row.misfire or "once",
                "overlap": row.overlap or "allow",
            },
            ScheduleConfig,
        )
        return NamedSchedule(
            name=row.name,
            handler=row.handler or "",
            workflow=row.workflow or "",
            vars=msgspec.json.decode(row.vars or b"{}", type=dict[str, Any]),
            params=msgspec.json.decode(row.params or b"{}", type=dict[str, Any]),
            jitter=(row.jitter_ms or 0) / 1000,
            priority=row.priority,
            group=row.group_key or "",
            enabled=row.enabled,
            **msgspec.structs.asdict(values),
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValue(f"the row of schedule {row.name!r} cannot be read: {error}") from None


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


# -- writing -------------------------------------------------------------------------------------


def described(schedule: ScheduleConfig) -> tuple[Kind, str, str]:
    """Kind, expression and timezone as the columns hold them: `30s` for an interval."""
    if schedule.cooler is not None:
        return "cooler", f"{schedule.cooler:g}s", "UTC"
    return "cron", schedule.cron, schedule.timezone


def described_row(schedule: NamedSchedule) -> ScheduleRow:
    """The row of a schedule that has not started yet."""
    kind, expression, timezone = described(schedule)
    return ScheduleRow(
        name=schedule.name, kind=kind, expression=expression, timezone=timezone,
        last_tick=None, last_job=None, paused_at=None, paused_by=None,
        **_details(schedule),
    )  # fmt: skip


def _details(schedule: NamedSchedule) -> dict[str, Any]:
    """The other columns that a schedule sets; of the short form none."""
    if schedule.own:
        return {}
    return {
        "handler": schedule.handler or None,
        "workflow": schedule.workflow or None,
        "vars": msgspec.json.encode(schedule.vars) if schedule.handler else None,
        "params": msgspec.json.encode(schedule.params) if schedule.workflow else None,
        "misfire": schedule.misfire,
        "overlap": schedule.overlap,
        "jitter_ms": round(schedule.jitter * 1000),
        "priority": schedule.priority,
        "group_key": schedule.group or None,
        "enabled": schedule.enabled,
    }


_TIMING = ("kind", "expression", "timezone")
_DETAILS = (
    "handler", "workflow", "vars", "params", "misfire", "overlap", "jitter_ms", "priority", "group_key",
    "enabled",
)  # fmt: skip


def _value(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def upsert(tx: Tx, schedules: Mapping[str, ScheduleConfig]) -> list[str]:
    """Write the configured schedules; returns the names of those added or changed.

    A new one, and one whose times changed, starts now: earlier ticks are not missed ones, and a waiting run
    waits for the new interval. A pause outlives a change. One that was set at run time becomes configured.
    """
    there = find_all(tx, schedules)
    changed = []
    for name, given in sorted(schedules.items()):
        schedule = given if isinstance(given, NamedSchedule) else short_form(name, given)
        row = there.get(name)
        if row is None:
            _insert(tx, schedule, "config", 0)
        elif row.origin == "config" and _same(row, schedule, (*_TIMING, *_DETAILS)):
            continue
        else:
            revision = _next_revision(tx) if row.origin == "api" else row.revision
            _update(tx, row, schedule, "config", revision)
        changed.append(name)
    return changed


def _same(row: ScheduleRow, schedule: NamedSchedule, names: Iterable[str]) -> bool:
    new = described_row(schedule)
    return all(getattr(row, name) == getattr(new, name) for name in names)


def _insert(tx: Tx, schedule: NamedSchedule, origin: Origin, revision: int) -> None:
    row = described_row(schedule)
    names = (*_TIMING, *_DETAILS)
    tx.execute(
        f"INSERT INTO workerd_schedules (name, last_tick, origin, revision, {', '.join(names)})"
        f" VALUES (%s, %s, %s, %s, {marks(names)})" + tx.dialect.keep_existing("name"),
        (row.name, columns.at(tx.now), origin, revision, *(_value(getattr(row, name)) for name in names)),
    )


def _update(tx: Tx, row: ScheduleRow, schedule: NamedSchedule, origin: Origin, revision: int) -> None:
    new = described_row(schedule)
    names = (*_TIMING, *_DETAILS)
    restarts = not _same(row, schedule, (*_TIMING, "enabled"))
    last_tick = tx.now if restarts else row.last_tick
    tx.execute(
        "UPDATE workerd_schedules SET origin = %s, revision = %s, last_tick = %s,"
        f" {', '.join(f'{name} = %s' for name in names)} WHERE name = %s",
        (
            origin, revision, columns.at(last_tick), *(_value(getattr(new, name)) for name in names), row.name
        ),
    )  # fmt: skip
    if restarts and row.kind == "cooler" and row.own:
        intervals.remove_scheduled(tx, row.name)


def _next_revision(tx: Tx) -> int:
    """Count a change at run time; its lock orders these changes."""
    changed = tx.execute("UPDATE workerd_revisions SET revision = revision + 1 WHERE name = 'schedules'")
    if not changed:
        tx.execute("INSERT INTO workerd_revisions (name, revision) VALUES ('schedules', 1)")
    row = tx.one("SELECT revision FROM workerd_revisions WHERE name = 'schedules'")
    assert row is not None
    return int(row[0])


def set_(tx: Tx, schedule: NamedSchedule) -> bool:
    """Create or replace a schedule at run time; returns whether it was created.

    The same again changes nothing. Raises Conflict for the name of a configured one, InvalidValue above
    MAX_SET schedules.
    """
    revision = _next_revision(tx)
    row = find_all(tx, [schedule.name]).get(schedule.name)
    if row is None:
        count = tx.one("SELECT COUNT(*) FROM workerd_schedules WHERE origin = 'api'")
        if count is not None and int(count[0]) >= MAX_SET:
            raise InvalidValue(f"there are {MAX_SET} schedules that were set at run time; remove some")
        _insert(tx, schedule, "api", revision)
        return True
    _refuse_configured(row)
    if not _same(row, schedule, (*_TIMING, *_DETAILS)):
        _update(tx, row, schedule, "api", revision)
    return False


def remove(tx: Tx, name: str) -> None:
    """Remove a schedule that was set at run time; what it has started goes on.

    Raises NotFound, Conflict for a configured one.
    """
    _next_revision(tx)
    _refuse_configured(find(tx, name, lock=True))
    tx.execute("DELETE FROM workerd_schedules WHERE name = %s", (name,))
    ticks.forget(tx, [name])


def _refuse_configured(row: ScheduleRow) -> None:
    if row.origin == "config":
        raise Conflict(f"Schedule {row.name!r} is configured; change it in the configuration.")


def revision(tx: Tx) -> int:
    """The revision of the schedules that are set at run time."""
    row = tx.one("SELECT revision FROM workerd_revisions WHERE name = 'schedules'")
    return int(row[0]) if row is not None else 0


def revisions(tx: Tx, after: str, limit: int) -> list[tuple[str, int]]:
    """Name and revision of the next schedules that were set at run time, by name."""
    rows = tx.query(
        "SELECT name, revision FROM workerd_schedules WHERE name > %s AND origin = 'api'"
        " ORDER BY name LIMIT %s",
        (after, limit),
    )
    return [(columns.lenient(name) or "", int(number)) for name, number in rows]


def orphans(tx: Tx, own: Iterable[str]) -> list[str]:
    """Configured schedules that no node has in its configuration any more.

    Nodes publish theirs in `schedules` of their `info`; while one has not, no schedule counts as an orphan.
    A node counts until it was found dead and its row removed: its lease alone may look over when the store's
    clock was set.
    """
    rows = tx.query("SELECT name FROM workerd_schedules WHERE origin = 'config'")
    had = {columns.lenient(row[0]) or "" for row in rows} - set(own)
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
    removed = tx.execute(
        f"DELETE FROM workerd_schedules WHERE name IN ({marks(gone)}) AND origin = 'config'", gone
    )
    ticks.forget(tx, gone)
    for name in gone:
        intervals.remove_waiting(tx, name)
    return removed


# -- pause, resume, run ------------------------------------------------------------------------


def pause(tx: Tx, name: str, by: str) -> None:
    """Fire no tick and start no run until `resume`; running jobs finish. Raises NotFound."""
    schedule = find(tx, name, lock=True)
    tx.execute(
        "UPDATE workerd_schedules SET paused_at = COALESCE(paused_at, %s), paused_by = %s WHERE name = %s",
        (columns.at(tx.now), by[:191], name),
    )
    if schedule.kind == "cooler" and schedule.own:
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
    if schedule.kind == "cooler" and schedule.own:
        intervals.ensure_next(tx, name, 0)
    return True


def run_now(tx: Tx, name: str, *, workflow: bool = False) -> bytes:
    """Run once now, paused or not; returns the id of the job or request. Raises NotFound, Conflict.

    The waiting run of an interval becomes due now, and the interval starts over from its end. `workflow`:
    whether a short form is that of a workflow.
    """
    row = find(tx, name, lock=True)
    if not row.own:
        return _run_named(tx, row)
    schedule = short_form(name, ScheduleConfig(), workflow=workflow)
    if row.kind == "cron":
        return ticks.start(tx, schedule)
    if intervals.make_due(tx, name):
        run = intervals.live_run(tx, name)
        assert run is not None
        return run.id
    if intervals.live_run(tx, name) is not None:
        raise _already_running(name)
    if workflow:
        return ticks.start(tx, schedule)
    return ticks.start_interval(tx, name) or _fail(_already_running(name))


def _run_named(tx: Tx, row: ScheduleRow) -> bytes:
    schedule = definition(row)
    if row.kind == "cooler":
        fired = ticks.run_cooler(tx, schedule, now=True)
        return fired.job or _fail(_already_running(row.name))
    return ticks.start(tx, schedule)


def _fail(error: Exception) -> bytes:
    raise error


def _already_running(name: str) -> Conflict:
    return Conflict(f"{name!r} is already running; the next run starts one interval after its end.")


# -- lists -----------------------------------------------------------------------------------


def list_(tx: Tx) -> list[ScheduleRow]:
    """All schedules by name, with the state of their last runs; without very long vars and params."""
    wanted = ", ".join(
        columns.no_longer(tx, name, columns.MAX_LISTED_BYTES) if name in ("vars", "params") else name
        for name in _COLUMNS.split(", ")
    )
    rows = [_schedule(row) for row in tx.query(f"SELECT {wanted} FROM workerd_schedules ORDER BY name")]
    add_last(tx, rows)
    return rows


def add_last(tx: Tx, rows: Collection[ScheduleRow]) -> None:
    """Add the state of their last runs."""
    runs = ticks.last_runs(tx, [row.last_job for row in rows if row.last_job is not None])
    for row in rows:
        if row.kind == "cooler" and row.own:
            _add_interval(tx, row)
        elif row.last_job in runs:
            run = runs[row.last_job]
            row.last_status, row.last_end = run.status, run.ended_at
            if row.kind == "cooler" and run.over:
                row.next_at = min(run.ended_at or tx.now, tx.now) + ticks.pause_us(row.expression)
        elif row.kind == "cooler":
            row.next_at = tx.now


def list_with_next(tx: Tx) -> list[ScheduleRow]:
    """All configured schedules by name, without their last runs: of an interval with its waiting run."""
    rows = [
        _schedule(row)
        for row in tx.query(f"SELECT {_COLUMNS} FROM workerd_schedules WHERE origin = 'config' ORDER BY name")
    ]
    for row in rows:
        if row.kind == "cooler" and row.own:
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


def _add_interval(tx: Tx, row: ScheduleRow) -> None:
    run = intervals.live_run(tx, row.name)
    last = intervals.last_run(tx, row.name)
    if last is not None:
        row.last_job, row.last_status, row.last_end = last
    if run is not None and run.status is not Status.INPROGRESS:
        row.next_at = run.run_at
        row.own_pause_s = _own_pause_s(row, run)
