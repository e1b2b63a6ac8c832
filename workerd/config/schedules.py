"""Schedules: of a handler or workflow itself, by name in `[schedules.NAME]`, and those set at run time."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.config_value import keys_of
from workerd.config.handler_config import HandlerConfig
from workerd.config.model import SCHEDULE_KEYS
from workerd.config.reader import Table, check_name, nearest
from workerd.config.schedule_config import NamedSchedule, ScheduleConfig
from workerd.config.workflow_config import WorkflowConfig
from workerd.errors import InvalidValue


def own_schedule(table: Table, own: dict[str, Any], defaults: dict[str, Any]) -> ScheduleConfig:
    """When it recurs; its own `cron` replaces a default `cooler`, and the other way round."""
    layers = {key: value for key, value in defaults.items() if key in keys_of(ScheduleConfig)}
    given = {key: value for key, value in own.items() if key in keys_of(ScheduleConfig)}
    if given.get("cron"):
        layers.pop("cooler", None)
    if given.get("cooler") is not None:
        layers.pop("cron", None)
    made = ScheduleConfig(**{**layers, **given})
    if made.cron and made.cooler is not None:
        table.error('expected cooler or cron, got both; set one of them to ""', "cron")
    return made


def named(
    root: Table, handlers: Mapping[str, HandlerConfig], workflows: Mapping[str, WorkflowConfig]
) -> dict[str, NamedSchedule]:
    """All `[schedules.NAME]`; what is wrong with them becomes errors."""
    found: dict[str, NamedSchedule] = {}
    for name, table in root.table("schedules").tables():
        if not check_name(table, name):
            continue
        schedule = NamedSchedule(name=name, **table.read(SCHEDULE_KEYS))
        if any(owner.schedule.recurs for owner in (handlers.get(name), workflows.get(name)) if owner):
            table.error("expected another name, as a handler or workflow of this name recurs by itself")
        for key, message in faults(schedule, handlers, workflows):
            table.error(message + _hint(schedule, key, handlers, workflows), key)
        found[name] = schedule
    return found


def _hint(schedule: NamedSchedule, key: str, handlers: Iterable[str], workflows: Iterable[str]) -> str:
    """The nearest known name, where one that was given is unknown."""
    if key not in ("handler", "workflow") or bool(schedule.handler) == bool(schedule.workflow):
        return ""
    return nearest(str(getattr(schedule, key)), handlers if key == "handler" else workflows)


def faults(
    schedule: NamedSchedule, handlers: Container[str], workflows: Container[str]
) -> list[tuple[str, str]]:
    """What is wrong with a schedule whose keys are right one by one: a key, and what was expected there."""
    found: list[tuple[str, str]] = []
    if bool(schedule.handler) == bool(schedule.workflow):
        found.append(("handler", f"expected handler or workflow, got {_either(schedule.handler)}"))
    elif schedule.handler and schedule.handler not in handlers:
        found.append(("handler", f'expected a known handler, got "{schedule.handler}"'))
    elif schedule.workflow and schedule.workflow not in workflows:
        found.append(("workflow", f'expected a workflow that is configured, got "{schedule.workflow}"'))
    if bool(schedule.cron) == (schedule.cooler is not None):
        found.append(("cron", f"expected cron or cooler, got {_either(schedule.cron)}"))
    given: dict[str, Any] = {"vars": schedule.vars, "priority": schedule.priority, "group": schedule.group}
    if schedule.workflow:
        found += [(key, "expected it with a handler, got it with a workflow") for key in given if given[key]]
    elif schedule.params:
        found.append(("params", "expected it with a workflow, got it with a handler"))
    return found


def _either(value: object) -> str:
    return "both" if value else "none"


def checked(
    name: str, given: Mapping[str, Any], handlers: Container[str], workflows: Container[str]
) -> NamedSchedule:
    """A schedule from values as JSON or a program gives them. Raises InvalidValue, which names the key."""
    values: dict[str, Any] = {}
    for key, value in given.items():
        validator = SCHEDULE_KEYS.get(key)
        if not isinstance(validator, v.Validator):
            raise InvalidValue(f"{key[:60]}: expected one of {', '.join(SCHEDULE_KEYS)}")
        try:
            values[key] = validator(value)
        except InvalidValue as error:
            raise InvalidValue(f"{key}: {error}") from None
    try:
        schedule = NamedSchedule(name=texts.unreserved_name(name), **values)
    except InvalidValue as error:
        raise InvalidValue(f"name: {error}") from None
    for key, message in faults(schedule, handlers, workflows):
        raise InvalidValue(f"{key}: {message}")
    return schedule
