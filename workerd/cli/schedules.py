"""`schedules`: what recurs, when next, how the last run ended; pause, resume or run one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workerd.cli.errors import UsageError
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import Document, notify, print_json, print_table, print_text
from workerd.cli.session import open_session
from workerd.cli.views import second
from workerd.job import id_text
from workerd.operations import schedules as operations
from workerd.text import line, seconds_text

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
    with open_session(c) as session:
        if name is None:
            found = session.read(lambda tx: operations.list_(tx, session.config))
        else:
            schedule, times = session.read(
                lambda tx: operations.find(tx, session.config, name, times=next_ or 1)
            )
            found = [schedule]
    if next_ is not None:
        _print_next(schedule, times, json)
    elif json:
        print_json({"schedules": found, "next": None})
    elif found:
        _print(found)
    else:
        notify("Nothing recurs. Give a handler or a workflow `cron` or `cooler` in the configuration.")


def _print(found: list[Document]) -> None:
    print_table(
        ["name", "when", "next", "last run ended", "as", "state"],
        [
            [s["name"], _when(s), second(s["next_at"]), second(s["last_end"]), s["last_status"], _state(s)]
            for s in found
        ],
    )
    for note in sorted({s["note"] for s in found if s["note"]}):
        notify(note)


def _when(schedule: Document) -> str:
    if schedule["pause"] is not None:
        return f"{seconds_text(schedule['pause'])} after the last end, by cooler()"
    if schedule["kind"] == "cooler":
        return f"{schedule['expression']} after each end"
    return f"{schedule['expression']} {schedule['timezone']}"


def _state(schedule: Document) -> str:
    if schedule["paused_at"] is not None:
        return f"paused {second(schedule['paused_at'])} by {schedule['paused_by']}"
    return "active"


def _print_next(schedule: Document, times: list[str], json: bool) -> None:
    if json:
        print_json({**schedule, "next": times})
        return
    for time in times:
        print_text(second(time) or "")
    name = line(schedule["name"])
    if schedule["paused_at"] is not None:
        notify(f"{name} is paused; `workerd schedules resume {name}` resumes it.")
    elif schedule["kind"] == "cooler":
        notify("Each run starts a pause after the end of the one before: later times are not known.")


def _act(path: Path | None, action: str, name: str, json: bool) -> None:
    shown = line(name)
    with open_session(path) as session:
        actor, config = session.actor, session.config
        match action:
            case "pause":
                session.run(lambda tx: operations.pause(tx, actor, config, name))
                notify(f"{shown} is paused; `workerd schedules resume {shown}` resumes it.")
            case "resume":
                _, was_paused = session.run(lambda tx: operations.resume(tx, actor, config, name))
                notify(f"{shown} {'is resumed' if was_paused else 'was not paused; nothing has changed'}.")
            case _:
                key = id_text(session.run(lambda tx: operations.run_now(tx, actor, config, name)))
                if json:
                    print_json({"id": key})
                else:
                    print_text(key)
