"""`schedules`: what recurs, when next, how the last runs ended; set, remove, pause, resume or run one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from workerd.cli.errors import UsageError
from workerd.cli.options import AsJson, ConfigPath, parse_key_values
from workerd.cli.output import Document, notify, print_json, print_table, print_text
from workerd.cli.session import CommandSession, open_session
from workerd.cli.views import run_time, second
from workerd.errors import NotFound
from workerd.job import id_text
from workerd.operations import schedules as operations
from workerd.text import line, seconds_text, word

ACTIONS = ("pause", "resume", "run", "remove")
"""Besides `set`. A schedule may have such a name: alone it is then shown."""
MAX_NEXT = 1000

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME | set NAME KEY=VALUE ... | remove NAME | pause NAME | resume NAME | run NAME]",
        help="One schedule, or an action on it.",
    ),
]
Next = Annotated[
    int | None, typer.Option("--next", metavar="N", min=1, max=MAX_NEXT, help="Show the next N times.")
]


def schedules(words: Words = None, next_: Next = None, c: ConfigPath = None, json: AsJson = False) -> None:
    """List schedules, or set, remove, pause, resume or run one.

    `set` creates or replaces one: handler=… or workflow=…, cron=… or cooler=…, vars.NAME=…, params.NAME=…,
    timezone=…, misfire=…, overlap=…, jitter=…, priority=…, group=…, enabled=….
    """
    match words or []:
        case []:
            name = None
        case [name]:
            pass
        case [action, name, *pairs] if action == "set" or (action in ACTIONS and not pairs):
            if next_ is not None:
                raise UsageError(f"--next shows times. Leave it out, or leave out {action}.")
            _act(c, action, name, parse_key_values(pairs), json)
            return
        case _:
            raise UsageError("Expected one name, or set, remove, pause, resume or run and one name.")
    _show(c, name, next_, json)


def _show(c: Path | None, name: str | None, next_: int | None, json: bool) -> None:
    if next_ is not None and name is None:
        raise UsageError("Name the schedule whose next times you want: `workerd schedules NAME --next 10`.")
    with open_session(c) as session:
        if name is None:
            found = session.read(lambda tx: operations.list_(tx, session.config))
        else:
            schedule, times = _find(session, name, next_ or 1)
            found = [schedule]
    if next_ is not None:
        _print_next(schedule, times, json)
    elif json:
        print_json({"schedules": found, "next": None})
    elif name is not None:
        _print_one(schedule)
    elif found:
        _print(found)
    else:
        notify("Nothing recurs. Give a handler or a workflow `cron` or `cooler`, or use `schedules set`.")


def _find(session: CommandSession, name: str, times: int) -> tuple[Document, list[str]]:
    try:
        return session.read(lambda tx: operations.find(tx, session.config, name, times=times))
    except NotFound:
        if name not in ("set", *ACTIONS):
            raise
        raise UsageError(
            f"Name the schedule: `workerd schedules {name} NAME`; there is none that is called {name}."
        ) from None


def _set(session: CommandSession, name: str, texts: dict[str, str], json: bool) -> None:
    document, created = session.run(
        lambda tx: operations.set_texts(tx, session.actor, session.config, name, texts)
    )
    if json:
        print_json(document)
        return
    notify(f"{line(name)} is {'set' if created else 'replaced'}; next: {second(document['next_at']) or '–'}.")
    if document["note"]:
        notify(document["note"])


def _print_one(schedule: Document) -> None:
    _print([schedule])
    for key in ("vars", "params"):
        if schedule[key]:
            print_text(f"{key}: {line(msgspec.json.encode(schedule[key]).decode())}")
    if schedule["history"]:
        print_text("")
        print_table(
            ["tick", "as", "took", "id"],
            [
                [second(p["tick"]), p["status"], run_time(p["run_us"]), p["job_id"]]
                for p in schedule["history"]
            ],
        )


def _print(found: list[Document]) -> None:
    print_table(
        ["name", "runs", "when", "next", "last run ended", "as", "state"],
        [
            [
                s["name"],
                _target(s),
                _when(s),
                second(s["next_at"]),
                second(s["last_end"]),
                s["last_status"],
                _state(s),
            ]
            for s in found
        ],
    )
    for note in sorted({s["note"] for s in found if s["note"]}):
        notify(note)


def _target(schedule: Document) -> str:
    workflow = schedule["workflow"]
    return f"workflow {workflow}" if workflow else str(schedule["handler"] or "")


def _when(schedule: Document) -> str:
    if schedule["pause"] is not None:
        return f"{seconds_text(schedule['pause'])} after the last end, by cooler()"
    if schedule["kind"] == "cooler":
        return f"{schedule['expression']} after each end"
    return f"{schedule['expression']} {schedule['timezone']}"


def _state(schedule: Document) -> str:
    if schedule["paused_at"] is not None:
        return f"paused {second(schedule['paused_at'])} by {schedule['paused_by']}"
    if not schedule["enabled"]:
        return "disabled"
    return "active" if schedule["origin"] == "config" else "active, set at run time"


def _print_next(schedule: Document, times: list[str], json: bool) -> None:
    if json:
        print_json({**schedule, "next": times})
        return
    for time in times:
        print_text(second(time) or "")
    name = schedule["name"]
    if schedule["paused_at"] is not None:
        notify(f"{line(name)} is paused; `workerd schedules resume {word(name)}` resumes it.")
    elif schedule["kind"] == "cooler":
        notify("Each run starts one pause after the previous one ends: later times are not known.")


def _act(path: Path | None, action: str, name: str, texts: dict[str, str], json: bool) -> None:
    shown = line(name)
    with open_session(path) as session:
        actor, config = session.actor, session.config
        match action:
            case "set":
                _set(session, name, texts, json)
            case "pause":
                session.run(lambda tx: operations.pause(tx, actor, config, name))
                notify(f"{shown} is paused; `workerd schedules resume {word(name)}` resumes it.")
            case "remove":
                session.run(lambda tx: operations.remove(tx, actor, config, name))
                notify(f"{shown} is removed; jobs and requests that it started continue.")
            case "resume":
                _, was_paused = session.run(lambda tx: operations.resume(tx, actor, config, name))
                notify(f"{shown} {'is resumed' if was_paused else 'was not paused; nothing has changed'}.")
            case _:
                key = id_text(session.run(lambda tx: operations.run_now(tx, actor, config, name)))
                if json:
                    print_json({"id": key})
                else:
                    print_text(key)
