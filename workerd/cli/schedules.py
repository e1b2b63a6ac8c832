"""`schedules`: what recurs, when next, how the last run ended; pause, resume or run one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from workerd import documents
from workerd.cli.errors import UsageError
from workerd.cli.handlers import user_at_host
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import notify, print_json, print_table, print_text
from workerd.cli.session import open_session, wake
from workerd.cli.views import second_of
from workerd.clock import to_rfc3339
from workerd.config.model import Config
from workerd.errors import NotFound
from workerd.job import id_text
from workerd.schedule import Cron
from workerd.store import schedules as store_schedules
from workerd.store.base import Store, Tx
from workerd.store.schedules import ScheduleRow
from workerd.text import line

ACTIONS = ("pause", "resume", "run")
MAX_NEXT = 1000

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME | pause NAME | resume NAME | run NAME]", help="One schedule, or an action on it."
    ),
]
Next = Annotated[
    int | None, typer.Option("--next", metavar="N", min=1, max=MAX_NEXT, help="Show the next N times.")
]


def schedules(words: Words = None, next_: Next = None, c: ConfigPath = None, json: AsJson = False) -> None:
    """List schedules, or pause, resume or run one."""
    match words or []:
        case []:
            name = None
        case [name]:
            pass
        case [action, name] if action in ACTIONS:
            if next_ is not None:
                raise UsageError(f"--next shows times. Leave it out, or leave out {action}.")
            _act(c, action, name, json)
            return
        case _:
            raise UsageError("Expected one name, or pause, resume or run and one name.")
    if next_ is not None and name is None:
        raise UsageError("Name the schedule whose next times you want: `workerd schedules NAME --next 10`.")
    with open_session(c) as (config, store):
        rows, now = store.read(lambda tx: _rows(tx, config, name))
    if next_ is None:
        _print(rows, now, json)
    else:
        _print_next(rows[0], now, next_, json)


def _rows(tx: Tx, config: Config, name: str | None) -> tuple[list[ScheduleRow], int]:
    """The schedules of the store and of the configuration, by name, and the store's now. Raises NotFound."""
    found = {row.name: row for row in store_schedules.list_(tx)}
    for configured, schedule in store_schedules.wanted(config).items():
        if configured not in found:
            kind, expression, timezone = store_schedules.described(schedule)
            found[configured] = ScheduleRow(
                name=configured, kind=kind, expression=expression, timezone=timezone,
                last_tick=None, last_job=None, paused_at=None, paused_by=None,
            )  # fmt: skip
    if name is None:
        return [found[key] for key in sorted(found)], tx.now
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise NotFound(f'There is no schedule "{name}"; there are: {known}.')
    return [found[name]], tx.now


def _next_times(row: ScheduleRow, now: int, count: int) -> list[int]:
    """The next times of a schedule, as far as they can be known."""
    if row.paused_at is not None:
        return []
    if row.kind == "cooler":
        # The run after the next one starts when the next one has ended, which is not known.
        return [row.next_at] if row.next_at is not None else []
    return list(islice(Cron(row.expression, row.timezone).after(now), count))


def _document(row: ScheduleRow, times: list[int]) -> dict[str, Any]:
    next_at = documents.moment(times[0] if times else None)
    return {**documents.schedule(row), "next_at": next_at}


def _print(rows: list[ScheduleRow], now: int, json: bool) -> None:
    times = [_next_times(row, now, 1) for row in rows]
    if json:
        found = [_document(row, of) for row, of in zip(rows, times, strict=True)]
        print_json({"schedules": found, "next": None})
        return
    if not rows:
        notify("Nothing recurs. Give a handler or a workflow `cron` or `cooler` in the configuration.")
        return
    print_table(
        ["name", "when", "next", "last run ended", "as", "state"],
        [
            [row.name, _when(row), second_of(of[0] if of else None), second_of(row.last_end), row.last_status,
             _state(row)]
            for row, of in zip(rows, times, strict=True)
        ],
    )  # fmt: skip


def _when(row: ScheduleRow) -> str:
    if row.kind == "cooler":
        return f"{row.expression} after each end"
    return f"{row.expression} {row.timezone}"


def _state(row: ScheduleRow) -> str:
    if row.paused_at is not None:
        return f"paused {second_of(row.paused_at)} by {row.paused_by}"
    return "active"


def _print_next(row: ScheduleRow, now: int, count: int, json: bool) -> None:
    times = _next_times(row, now, count)
    if json:
        print_json({**_document(row, times), "next": [to_rfc3339(us) for us in times]})
        return
    for us in times:
        print_text(second_of(us) or "")
    if row.paused_at is not None:
        notify(f"{line(row.name)} is paused; `workerd schedules resume {line(row.name)}` resumes it.")
    elif row.kind == "cooler":
        notify("Each run starts a pause after the end of the one before: later times are not known.")


def _act(path: Path | None, action: str, name: str, json: bool) -> None:
    with open_session(path) as (config, store):
        match action:
            case "pause":
                store.run(lambda tx: store_schedules.pause(tx, name, user_at_host()))
                notify(f"{line(name)} is paused; `workerd schedules resume {line(name)}` resumes it.")
            case "resume":
                was_paused = store.run(lambda tx: store_schedules.resume(tx, name))
                text = "is resumed from now on." if was_paused else "was not paused; nothing has changed."
                notify(f"{line(name)} {text}")
            case _:
                _run(config, store, name, json)
        wake(config)


def _run(config: Config, store: Store, name: str, json: bool) -> None:
    workflow = name in config.workflows
    key = store.run(lambda tx: store_schedules.run_now(tx, name, workflow=workflow))
    if json:
        print_json({"id": id_text(key)})
    else:
        print_text(id_text(key))
