"""List, pause, resume and run schedules, stored and configured ones."""

from __future__ import annotations

from itertools import islice

from workerd import documents
from workerd.clock import SECOND, to_rfc3339
from workerd.config.model import Config
from workerd.documents import Document
from workerd.errors import InvalidValue, NotFound
from workerd.job import id_text
from workerd.operations import audit
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.schedule import Cron, voided
from workerd.store import nodes, schedules
from workerd.store.base import Tx
from workerd.store.schedules import ScheduleRow
from workerd.text import seconds_text

NOTE_FOR_US = 3600 * SECOND
"""For which a schedule's note tells of a clock that was set back."""


def list_(tx: Tx, config: Config) -> list[Document]:
    """Stored schedules, and configured ones that have not started yet, by name."""
    rows = _rows(tx, config)
    note = _clock_note(tx)
    return [_document(rows[name], tx.now, note) for name in sorted(rows)]


def find(tx: Tx, config: Config, name: str, *, times: int = 1) -> tuple[Document, list[str]]:
    """A schedule, and at most `times` of its next runs as RFC 3339. Raises NotFound."""
    rows = _rows(tx, config)
    if name not in rows:
        known = ", ".join(sorted(rows)) or "none"
        raise NotFound(f'Schedule "{name}" not found; known are: {known}.')
    upcoming = [documents.moment(us) or "" for us in _upcoming(rows[name], tx.now, times)]
    return _document(rows[name], tx.now, _clock_note(tx)), upcoming


def pause(tx: Tx, actor: Actor, config: Config, name: str) -> Document:
    """Start no runs until it is resumed. Raises NotFound."""
    schedules.pause(tx, name, actor.name)
    audit.record(tx, actor, Action.PAUSE, name)
    return _document(schedules.find(tx, name), tx.now)


def resume(tx: Tx, actor: Actor, config: Config, name: str) -> tuple[Document, bool]:
    """Resume from now on, without the ticks missed; also whether it was paused. Raises NotFound."""
    was_paused = schedules.resume(tx, name)
    if was_paused:
        audit.record(tx, actor, Action.RESUME, name)
    return _document(schedules.find(tx, name), tx.now), was_paused


def run_now(tx: Tx, actor: Actor, config: Config, name: str) -> bytes:
    """Run it once now, even if paused; the id of the job or request. Raises NotFound, Conflict."""
    started = schedules.run_now(tx, name, workflow=name in config.workflows)
    audit.record(tx, actor, Action.SCHEDULE_RUN, name, {"id": id_text(started)})
    return started


def lateness(tx: Tx, config: Config) -> dict[str, float]:
    """Seconds since a run of each schedule was due that has not begun; 0 if it is on time or paused."""
    late = dict.fromkeys(schedules.wanted(config), 0.0)
    return late | {row.name: _late_s(row, tx.now) for row in schedules.list_with_next(tx)}


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
        cron = Cron(row.expression, row.timezone)
    except InvalidValue:
        return []  # written by hand; no node fires it
    done_until = now if voided(cron, row.last_tick, now) else max(now, row.last_tick or 0)
    return list(islice(cron.after(done_until), count))


def _clock_note(tx: Tx) -> str | None:
    """That the store's clock was set back not long ago, as a node saw it."""
    steps = [node.published.clock_set_back for node in nodes.list_(tx)]
    recent = [step for step in steps if step is not None and abs(tx.now - step.at) < NOTE_FOR_US]
    if not recent:
        return None
    last = max(recent, key=lambda step: step.at)
    return (
        f"The store's clock was set back by {seconds_text(last.by_s)} at {to_rfc3339(last.at)[:19]}Z; "
        f"crons and coolers go on from there."
    )


def _document(row: ScheduleRow, now: int, note: str | None = None) -> Document:
    return documents.schedule(row, next(iter(_upcoming(row, now, 1)), None), note)
