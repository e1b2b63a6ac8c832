"""`schedules`: what recurs, when next, how the last run ended; pause, resume and run one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workerd.cli.errors import UsageError
from workerd.cli.handlers import who
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import put, put_json, say, table
from workerd.cli.session import opened, wake
from workerd.cli.views import second
from workerd.clock import to_rfc3339
from workerd.config.model import Config
from workerd.errors import NotFound
from workerd.job import id_text
from workerd.text import line

if TYPE_CHECKING:
    from workerd.store.base import Store, Tx
    from workerd.store.schedules import ScheduleRow


ACTIONS = ("pause", "resume", "run")
MOST = 1000

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME | pause NAME | resume NAME | run NAME]", help="One schedule, or what to do with it."
    ),
]
Next = Annotated[
    int | None, typer.Option("--next", metavar="N", min=1, max=MOST, help="Show the N coming times.")
]


def schedules(words: Words = None, next_: Next = None, c: ConfigPath = None, json: AsJson = False) -> None:
    """List what recurs, or pause, resume or run it."""
    match words or []:
        case []:
            name = None
        case [name]:
            pass
        case [action, name] if action in ACTIONS:
            if next_ is not None:
                raise UsageError("--next shows times and changes nothing: leave it out, or the action.")
            _act(c, action, name, json)
            return
        case _:
            raise UsageError("Expected one name, or pause, resume or run and one name.")
    with opened(c) as (config, store):
        rows, now = store.read(lambda tx: _rows(tx, config, name))
    if next_ is None:
        _show(rows, now, json)
    elif name is None:
        raise UsageError("Name the schedule whose coming times you want: `workerd schedules NAME --next 10`.")
    else:
        _show_next(rows[0], now, next_, json)


def _rows(tx: Tx, config: Config, name: str | None) -> tuple[list[ScheduleRow], int]:
    """The store's schedules and those that are configured but never began, by name. Raises NotFound."""
    from workerd.store import schedules as store

    found = {row.name: row for row in store.list_(tx)}
    for configured, schedule in store.wanted(config).items():
        if configured not in found:
            kind, expression, timezone = store.described(schedule)
            found[configured] = store.ScheduleRow(
                name=configured, kind=kind, expression=expression, timezone=timezone,
                last_tick=None, last_job=None, paused_at=None, paused_by=None,
            )  # fmt: skip
    if name is None:
        return [found[key] for key in sorted(found)], tx.now
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise NotFound(f'There is no schedule "{name}"; there are: {known}.')
    return [found[name]], tx.now


def coming(row: ScheduleRow, now: int, count: int) -> list[int]:
    """The next times of a schedule, as far as they can be known."""
    if row.paused_at is not None:
        return []
    if row.kind == "cooler":
        # When the run after the next one begins depends on how long the next one takes.
        return [row.next_at] if row.next_at is not None else []
    from workerd.schedule import Cron

    return list(islice(Cron(row.expression, row.timezone).after(now), count))


def _document(row: ScheduleRow, now: int, count: int = 1) -> dict[str, Any]:
    from workerd import documents

    times = coming(row, now, count)
    return {
        "name": row.name,
        "kind": row.kind,
        "expression": row.expression,
        "timezone": row.timezone,
        "last_tick": documents.moment(row.last_tick),
        "last_job": documents.identity(row.last_job),
        "last_status": row.last_status,
        "last_end": documents.moment(row.last_end),
        "next_at": documents.moment(times[0] if times else None),
        "paused_at": documents.moment(row.paused_at),
        "paused_by": row.paused_by,
        **({"next": [to_rfc3339(us) for us in times]} if count > 1 else {}),
    }


def _show(rows: list[ScheduleRow], now: int, json: bool) -> None:
    if json:
        put_json({"schedules": [_document(row, now) for row in rows], "next": None})
        return
    if not rows:
        say("Nothing recurs: give a handler or a workflow `cron` or `cooler` in the configuration.")
        return
    table(
        ["name", "when", "next", "last run ended", "as", "state"],
        [
            [row.name, _when(row), _next_text(row, now), _second(row.last_end), row.last_status, _state(row)]
            for row in rows
        ],
    )


def _when(row: ScheduleRow) -> str:
    if row.kind == "cooler":
        return f"{row.expression} after each end"
    return f"{row.expression} {row.timezone}"


def _next_text(row: ScheduleRow, now: int) -> str | None:
    times = coming(row, now, 1)
    return _second(times[0]) if times else None


def _second(us: int | None) -> str | None:
    return second(to_rfc3339(us)) if us is not None else None


def _state(row: ScheduleRow) -> str:
    if row.paused_at is not None:
        return f"paused {_second(row.paused_at)} by {row.paused_by}"
    return "active"


def _show_next(row: ScheduleRow, now: int, count: int, json: bool) -> None:
    times = coming(row, now, count)
    if json:
        put_json(_document(row, now, max(2, count)))
        return
    for us in times:
        put(_second(us) or "")
    if row.paused_at is not None:
        say(f"It is paused: `workerd schedules resume {line(row.name)}` lets it go on.")
    elif row.kind == "cooler":
        say("The pause is counted from the end of each run, so no further times are known.")


def _act(path: Any, action: str, name: str, json: bool) -> None:
    with opened(path) as (config, store):
        said = _ACT[action](config, store, name)
        wake(config)
    if isinstance(said, bytes):
        if json:
            put_json({"id": id_text(said)})
        else:
            put(id_text(said))
    else:
        say(said)


def _pause(config: Config, store: Store, name: str) -> str:
    from workerd.store import schedules as store_schedules

    store.run(lambda tx: store_schedules.pause(tx, name, who()))
    return f"{line(name)} is paused; `workerd schedules resume {line(name)}` lets it go on."


def _resume(config: Config, store: Store, name: str) -> str:
    from workerd.store import schedules as store_schedules

    if store.run(lambda tx: store_schedules.resume(tx, name)):
        return f"{line(name)} goes on from now."
    return f"{line(name)} was not paused; nothing has changed."


def _run(config: Config, store: Store, name: str) -> bytes:
    from workerd.store import schedules as store_schedules

    workflow = name in config.workflows
    return store.run(lambda tx: store_schedules.run_now(tx, name, workflow=workflow))


_Act = Callable[[Config, Any, str], str | bytes]
_ACT: dict[str, _Act] = {"pause": _pause, "resume": _resume, "run": _run}
