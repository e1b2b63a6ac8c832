"""What people, programs and configurations do to schedules: set, remove, pause, resume, run now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from workerd.config.schedule_config import NamedSchedule, ScheduleConfig
from workerd.errors import Conflict, InvalidValue
from workerd.store import columns, intervals, nodes, ticks
from workerd.store.base import Tx
from workerd.store.columns import marks
from workerd.store.schedules import Origin, ScheduleRow, definition, described_row, find, find_all, short_form

MAX_SET = 10_000
"""Schedules that may be set at run time: every node keeps each of them."""
_TIMING = ("kind", "expression", "timezone")
_DETAILS = (
    "handler", "workflow", "vars", "params", "misfire", "overlap", "jitter_ms", "priority", "group_key",
    "enabled",
)  # fmt: skip


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


def _value(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
