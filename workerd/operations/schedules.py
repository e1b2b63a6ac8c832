"""List, pause, resume and run schedules, stored and configured ones."""

from __future__ import annotations

from itertools import islice

from workerd import documents
from workerd.clock import SECOND
from workerd.config.model import Config
from workerd.documents import Document
from workerd.errors import InvalidValue, NotFound
from workerd.operations.actor import Actor
from workerd.schedule import Cron
from workerd.store import schedules
from workerd.store.base import Tx
from workerd.store.schedules import ScheduleRow


def list_(tx: Tx, config: Config) -> list[Document]:
    """Stored schedules, and configured ones that have not started yet, by name."""
    rows = _rows(tx, config)
    return [_document(rows[name], tx.now) for name in sorted(rows)]


def find(tx: Tx, config: Config, name: str, *, times: int = 1) -> tuple[Document, list[str]]:
    """A schedule, and at most `times` of its next runs as RFC 3339. Raises NotFound."""
    rows = _rows(tx, config)
    if name not in rows:
        known = ", ".join(sorted(rows)) or "none"
        raise NotFound(f'Schedule "{name}" not found; known are: {known}.')
    upcoming = [documents.moment(us) or "" for us in _upcoming(rows[name], tx.now, times)]
    return _document(rows[name], tx.now), upcoming


def pause(tx: Tx, actor: Actor, config: Config, name: str) -> Document:
    """Start no runs until it is resumed. Raises NotFound."""
    schedules.pause(tx, name, actor.name)
    return _document(schedules.find(tx, name), tx.now)


def resume(tx: Tx, actor: Actor, config: Config, name: str) -> tuple[Document, bool]:
    """Resume from now on, without the ticks missed; also whether it was paused. Raises NotFound."""
    was_paused = schedules.resume(tx, name)
    return _document(schedules.find(tx, name), tx.now), was_paused


def run_now(tx: Tx, actor: Actor, config: Config, name: str) -> bytes:
    """Run it once now, even if paused; the id of the job or request. Raises NotFound, Conflict."""
    return schedules.run_now(tx, name, workflow=name in config.workflows)


def lateness(tx: Tx, config: Config) -> dict[str, float]:
    """Seconds since a run of each schedule was due that has not begun; 0 if it is on time or paused."""
    return {name: _late_s(row, tx.now) for name, row in _rows(tx, config).items()}


def _late_s(row: ScheduleRow, now: int) -> float:
    due = row.next_at
    if row.kind == "cron" and row.last_tick is not None:
        try:
            due = next(iter(Cron(row.expression, row.timezone).after(row.last_tick)), None)
        except InvalidValue:
            due = None  # written by hand; no node fires it
    return 0.0 if due is None or row.paused_at is not None else max(0, now - due) / SECOND


def _rows(tx: Tx, config: Config) -> dict[str, ScheduleRow]:
    rows = {row.name: row for row in schedules.list_(tx)}
    for name, schedule in schedules.wanted(config).items():
        if name not in rows:
            kind, expression, timezone = schedules.described(schedule)
            rows[name] = ScheduleRow(
                name=name, kind=kind, expression=expression, timezone=timezone,
                last_tick=None, last_job=None, paused_at=None, paused_by=None,
            )  # fmt: skip
    return rows


def _upcoming(row: ScheduleRow, now: int, count: int) -> list[int]:
    """The next times in microseconds of store time; of a cooler at most one, of a paused schedule none."""
    if row.paused_at is not None:
        return []
    if row.kind == "cooler":
        # When the run after the next one starts depends on how long the next one takes.
        return [row.next_at] if row.next_at is not None else []
    try:
        return list(islice(Cron(row.expression, row.timezone).after(now), count))
    except InvalidValue:
        return []  # written by hand; no node fires it


def _document(row: ScheduleRow, now: int) -> Document:
    return documents.schedule(row, next(iter(_upcoming(row, now, 1)), None))
