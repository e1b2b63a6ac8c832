"""Schedules as rows: those of configurations and those that were set at run time.

`last_tick` says up to which tick a schedule is processed; `ticks` advances it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, Literal

import msgspec

from workerd.clock import SECOND
from workerd.config.model import Config
from workerd.config.quantities import duration, seconds_literal
from workerd.config.schedule_config import NamedSchedule, ScheduleConfig
from workerd.errors import InvalidValue, NotFound
from workerd.job import Status
from workerd.store import columns, intervals, ticks
from workerd.store.base import Tx
from workerd.store.columns import marks
from workerd.store.session import Row

_EXPONENT = re.compile(r"[0-9](\.[0-9]{1,5})?e[+-][0-9]{2}s", re.ASCII)

Kind = Literal["cron", "cooler"]
Origin = Literal["config", "api"]


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
        expression=_without_exponent(text(row[2]) or ""),
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


def _without_exponent(expression: str) -> str:
    """The pause of an interval as `described` writes it; earlier versions wrote `2.592e+06s` for 30 days."""
    if not _EXPONENT.fullmatch(expression):
        return expression
    return seconds_literal(float(expression.removesuffix("s")))


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
        return "cooler", seconds_literal(schedule.cooler), "UTC"
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


# -- pause, resume, run ------------------------------------------------------------------------


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
    stated_s = ticks.pause_us(row.expression) / SECOND
    of_key = any(math.isclose(found_s, stated_s, rel_tol=1e-6) for found_s in (pause_s, since_end_s))
    return None if of_key else pause_s


def _add_interval(tx: Tx, row: ScheduleRow) -> None:
    run = intervals.live_run(tx, row.name)
    last = intervals.last_run(tx, row.name)
    if last is not None:
        row.last_job, row.last_status, row.last_end = last
    if run is not None and run.status is not Status.INPROGRESS:
        row.next_at = run.run_at
        row.own_pause_s = _own_pause_s(row, run)
