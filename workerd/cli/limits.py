"""`limits`: what each limit allows, who has it, what waits for it."""

from __future__ import annotations

from workerd.cli.options import AsJson, ConfigPath
from workerd.cli.output import Document, notify, print_json, print_table
from workerd.cli.session import open_session
from workerd.cli.views import second
from workerd.operations import limits as operations


def limits(c: ConfigPath = None, json: AsJson = False) -> None:
    """List limits: what they allow, what is used, who holds them."""
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
    """`20 at once, 2 a group, 100/1m`."""
    if not limit["configured"]:
        return "configured on no node any more"
    words = [
        f"{limit['concurrency']} at once" if limit["concurrency"] is not None else "",
        f"{limit['group_concurrency']} a group" if limit["group_concurrency"] is not None else "",
        limit["rate"] or "",
        f"{limit['group_rate']} a group" if limit["group_rate"] else "",
        f"burst {limit['burst']}" if limit["burst"] is not None else "",
    ]
    return ", ".join(filter(None, words))
