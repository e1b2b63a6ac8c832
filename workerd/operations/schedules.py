"""List, pause, resume and run schedules, stored and configured ones."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec

from workerd import documents
from workerd.clock import SECOND, to_rfc3339
from workerd.config import schedules as rules
from workerd.config import text_validators as texts
from workerd.config.model import Config
from workerd.config.schedule_config import NamedSchedule
from workerd.document_types import Document
from workerd.documents import json_value
from workerd.errors import Conflict, InvalidValue, NotFound
from workerd.job import id_text
from workerd.operations import audit
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.operations.enqueue import check_spec_vars
from workerd.operations.rules import HandlerRules
from workerd.redaction import Redaction
from workerd.schedule import Cron, voided
from workerd.signature import coerce_texts
from workerd.store import handlers, nodes, schedule_control, schedules, ticks
from workerd.store.base import Tx
from workerd.store.schedules import ScheduleRow
from workerd.text import seconds_text

MAX_NAMES_SHOWN = 20
SECRETS = ("vars", "params")
"""Keys of a schedule whose values are not written to the audit."""
NOTE_FOR_US = 3600 * SECOND
"""For which a schedule's note tells of a clock that was set back."""


def list_(tx: Tx, config: Config) -> list[Document]:
    """Stored schedules, and configured ones that have not started yet, by name."""
    rows = _rows(tx, config)
    note, redacting = _clock_note(tx), HandlerRules(config)
    return [_document(tx, rows[name], config, redacting, note) for name in sorted(rows)]


def find(tx: Tx, config: Config, name: str, *, times: int = 1) -> tuple[Document, list[str]]:
    """A schedule with its last ticks, and at most `times` of its next runs as RFC 3339. Raises NotFound."""
    row = schedules.find_all(tx, [name]).get(name)
    if row is not None:
        schedules.add_last(tx, [row])
    elif name in (configured := schedules.wanted(config)):
        row = schedules.described_row(configured[name])
    else:
        known = ", ".join(sorted(_rows(tx, config))[:MAX_NAMES_SHOWN]) or "none"
        raise NotFound(f'Schedule "{name}" not found; known are: {known}.')
    upcoming = [documents.moment(us) or "" for us in _upcoming(row, tx.now, times)]
    note = _clock_note(tx) or _target_note(tx, config, row)
    document = _document(tx, row, config, HandlerRules(config), note)
    document["history"] = [documents.past_tick(past) for past in ticks.history(tx, name)]
    return document, upcoming


def checked(tx: Tx, config: Config, name: str, given: Mapping[str, Any]) -> NamedSchedule:
    """A schedule to set, from its keys as JSON or a program gives them. Raises InvalidValue.

    Its handler must be known, and its vars fit the handler's signature.
    """
    known = handlers.known(tx)
    schedule = _formed(known, config, name, given)
    for key, value in (("vars", schedule.vars), ("params", schedule.params)):
        size = len(msgspec.json.encode(value))
        if size > config.gateway.max_body:
            raise InvalidValue(f"{key}: {size} bytes of JSON exceed the limit of {config.gateway.max_body}")
    if schedule.handler:
        check_spec_vars(schedule.handler, schedule.vars, known.get(schedule.handler))
    return schedule


def _formed(
    known: Mapping[str, bytes | None], config: Config, name: str, given: Mapping[str, Any]
) -> NamedSchedule:
    return rules.checked(name, given, {*known, *config.handlers}, config.workflows)


def set_(tx: Tx, actor: Actor, config: Config, name: str, given: Mapping[str, Any]) -> tuple[Document, bool]:
    """Create or replace a schedule at run time; its document, and whether it was created.

    Raises InvalidValue, Conflict for the name of a configured one.
    """
    _formed(handlers.known(tx), config, name, given)  # before the store is asked for such a name or handler
    _refuse_configured(config, name)
    given = _with_redacted(tx, config, name, given)
    schedule = checked(tx, config, name, given)
    created = schedule_control.set_(tx, schedule)
    audit.record(
        tx, actor, Action.SCHEDULE_SET, name, {key: given[key] for key in given if key not in SECRETS}
    )
    return find(tx, config, name)[0], created


def _with_redacted(tx: Tx, config: Config, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with the stored values in place of redacted ones: people send back what they were shown.

    Raises InvalidValue for the mark of a redacted value where this schedule has none, or had another target:
    whoever gives that the value must know it.
    """
    row = schedules.find_all(tx, [name]).get(name)
    target = (str(given.get("handler") or ""), str(given.get("workflow") or ""))
    before = (row.handler or "", row.workflow or "") if row is not None else target
    rules, same = HandlerRules(config), row is not None and target == before
    # A mark may come from the schedule's former target.
    redaction = Redaction(path for one in (before, target) for path in _of_target(tx, rules, *one).paths)
    found = dict(given)
    for key in SECRETS:
        if isinstance(given.get(key), dict):
            stored = json_value(getattr(row, key)) if same else None
            try:
                found[key] = redaction.restored(given[key], stored)
            except InvalidValue as error:
                raise InvalidValue(f"{key}.{error}") from None
    return found


def _of_target(tx: Tx, rules: HandlerRules, handler: str, workflow: str) -> Redaction:
    return rules.of_workflow(tx, workflow) if workflow else rules.of(tx, handler)


def set_texts(
    tx: Tx, actor: Actor, config: Config, name: str, texts: Mapping[str, str]
) -> tuple[Document, bool]:
    """As `set_`, from texts: `vars.x` and `params.x` become values by the handler's signature."""
    given: dict[str, Any] = {}
    nested: dict[str, dict[str, str]] = {}
    for key, text in texts.items():
        table, dot, inner = key.partition(".")
        if dot and table in ("vars", "params"):
            nested.setdefault(table, {})[inner] = text
        elif key in ("vars", "params", "priority", "enabled"):
            given[key] = coerce_texts(None, {key: text})[key]
        else:
            given[key] = text
    signature = handlers.known(tx).get(given.get("handler", ""))
    for table, values in nested.items():
        given[table] = {**given.get(table, {}), **coerce_texts(signature, values)}
    return set_(tx, actor, config, name, given)


def remove(tx: Tx, actor: Actor, config: Config, name: str) -> None:
    """Remove a schedule that was set at run time; what it started continues. Raises NotFound, Conflict."""
    _refuse_configured(config, name)
    schedule_control.remove(tx, name)
    audit.record(tx, actor, Action.SCHEDULE_REMOVE, name)


def _refuse_configured(config: Config, name: str) -> None:
    if name in schedules.wanted(config):
        raise Conflict(f"Schedule {name!r} is configured; change it in the configuration.")


def next_times(given: Mapping[str, Any], count: int, now: int) -> list[str]:
    """The next times of a cron that is being written, as RFC 3339. Raises InvalidValue."""
    for key, validator in (("cron", texts.cron), ("timezone", texts.timezone)):
        try:
            validator(given.get(key, ""))
        except InvalidValue as error:
            raise InvalidValue(f"{key}: {error}") from None
    cron = Cron(given["cron"], given["timezone"])
    return [documents.moment(us) or "" for us in islice(cron.after(now), count)]


def pause(tx: Tx, actor: Actor, config: Config, name: str) -> Document:
    """Start no runs until it is resumed. Raises NotFound."""
    schedule_control.pause(tx, name, actor.name)
    audit.record(tx, actor, Action.PAUSE, name)
    return _document(tx, schedules.find(tx, name), config, HandlerRules(config))


def resume(tx: Tx, actor: Actor, config: Config, name: str) -> tuple[Document, bool]:
    """Resume from now on, without the ticks missed; also whether it was paused. Raises NotFound."""
    was_paused = schedule_control.resume(tx, name)
    if was_paused:
        audit.record(tx, actor, Action.RESUME, name)
    return _document(tx, schedules.find(tx, name), config, HandlerRules(config)), was_paused


def run_now(tx: Tx, actor: Actor, config: Config, name: str) -> bytes:
    """Run it once now, even if paused; the id of the job or request. Raises NotFound, Conflict."""
    started = schedule_control.run_now(tx, name, workflow=name in config.workflows)
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
            rows[name] = schedules.described_row(schedule)
    return rows


def _upcoming(row: ScheduleRow, now: int, count: int) -> list[int]:
    """The next times in microseconds of store time; of a cooler at most one, of a paused schedule none."""
    if row.paused_at is not None or not row.enabled:
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
    """That the store's clock was set back recently, as a node saw it."""
    steps = [node.published.clock_set_back for node in nodes.list_(tx)]
    recent = [step for step in steps if step is not None and abs(tx.now - step.at) < NOTE_FOR_US]
    if not recent:
        return None
    last = max(recent, key=lambda step: step.at)
    return (
        f"The store's clock was set back by {seconds_text(last.by_s)} at {to_rfc3339(last.at)[:19]}Z; "
        f"crons and coolers continue from there."
    )


def _target_note(tx: Tx, config: Config, row: ScheduleRow) -> str | None:
    """That no live node has its handler: the jobs that it starts wait."""
    name = row.handler or (row.name if row.own and row.name not in config.workflows else None)
    if name is None:
        return None
    found = handlers.find(tx, name)
    if found is not None and found.nodes:
        return None
    return f"No live node has the handler {name}; its jobs wait for one."


def _document(
    tx: Tx, row: ScheduleRow, config: Config, redacting: HandlerRules, note: str | None = None
) -> Document:
    document = documents.schedule(row, next(iter(_upcoming(row, tx.now, 1)), None), note)
    is_workflow = row.name in config.workflows if row.own else row.workflow is not None
    target = row.workflow or row.handler or row.name
    redaction = redacting.of_workflow(tx, target) if is_workflow else redacting.of(tx, target)
    for key in ("vars", "params"):
        document[key] = documents.shown_text(getattr(row, key), redaction)
    if row.own:
        document["workflow" if row.name in config.workflows else "handler"] = row.name
    return document
