"""`limits`: what each limit allows, who has it, what waits for it; end a hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workerd.cli.errors import UsageError
from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import Document, notify, print_json, print_table
from workerd.cli.session import open_session
from workerd.cli.views import second
from workerd.operations import limits as operations
from workerd.text import line

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[unhold NAME]", help="End the hold of this limit.")
]
Group = Annotated[
    str | None, typer.Option("--group", metavar="GROUP", help="End the hold of this group of the limit.")
]


def limits(words: Words = None, group: Group = None, c: ConfigPath = None, json: AsJson = False) -> None:
    """List limits, their use and their handlers; or end a hold.

    `unhold` ends the hold that a job asked for with `Retry(hold=…)`: waiting jobs start immediately on this
    host, on other nodes within `dispatcher.poll`. That job keeps its time; `workerd job retry` makes it due.
    """
    match words or []:
        case []:
            if group is not None:
                raise UsageError("--group belongs to `workerd limits unhold NAME`.")
            _show(c, json)
        case ["unhold", name]:
            _unhold(c, name, group, json)
        case _:
            raise UsageError("Expected nothing, or unhold and one name.")


def _unhold(c: Path | None, name: str, group: str | None, json: bool) -> None:
    with open_session(c) as session:
        actor, config = session.actor, session.config
        found, was_held = session.run(lambda tx: operations.unhold(tx, actor, config, name, group))
    whose = line(name)
    if group is not None:
        whose += f' for the group "{line(group)}"' if group else " for jobs without a group"
    notify(f"{whose} is no longer held." if was_held else f"{whose} was not held; nothing has changed.")
    if json:
        print_json(found)


def _show(c: Path | None, json: bool) -> None:
    with open_session(c) as session:
        found = session.read(lambda tx: operations.list_(tx, session.config))
    if json:
        print_json({"limits": found, "next": None})
        return
    if not found:
        notify("No limit is configured. [limits.NAME] in the configuration makes one.")
        return
    print_table(
        ["limit", "allows", "used", "waiting", "held until", "handlers"],
        [
            [
                one["name"], allowance(one), one["used"], one["waiting"], second(one["held_until"]),
                ", ".join(one["handlers"]),
            ]
            for one in found
        ],
    )  # fmt: skip
    groups = [(one["name"], group) for one in found for group in one["groups"]]
    if groups:
        print_table(
            ["limit", "group", "used", "held until"],
            [[name, group["group"], group["used"], second(group["held_until"])] for name, group in groups],
        )
    holders = [(one["name"], holder) for one in found for holder in one["holders"]]
    if holders:
        print_table(
            ["limit", "group", "job", "attempt", "handler", "node", "since"],
            [
                [name, h["group"], h["job_id"], h["attempt"], h["handler"], h["node"], second(h["since"])]
                for name, h in holders
            ],
        )


def allowance(limit: Document) -> str:
    """`20 at once, 2 per group, 100/1m`."""
    if not limit["configured"]:
        return "no longer configured on any node"
    words = [
        f"{limit['concurrency']} at once" if limit["concurrency"] is not None else "",
        f"{limit['group_concurrency']} per group" if limit["group_concurrency"] is not None else "",
        limit["rate"] or "",
        f"{limit['group_rate']} per group" if limit["group_rate"] else "",
        f"burst {limit['burst']}" if limit["burst"] is not None else "",
    ]
    return ", ".join(filter(None, words))
