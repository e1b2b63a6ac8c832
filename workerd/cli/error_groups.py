"""`errors` and `errors show|resolve|mute`: failures with one cause, as groups."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from workerd.cli.options import (
    AsJson,
    ConfigPath,
    HandlerFilter,
    Limit,
    SinceFilter,
    parse_duration,
    parse_fingerprint,
)
from workerd.cli.output import (
    Document,
    notify,
    print_fields,
    print_heading,
    print_json,
    print_table,
    print_text,
)
from workerd.cli.session import open_session
from workerd.cli.views import second
from workerd.operations import errors

DEFAULT_LIMIT = 50
"""Groups that `errors` shows without --limit."""


Fingerprint = Annotated[
    bytes, typer.Argument(metavar="FP", help="Fingerprint of the group.", parser=parse_fingerprint)
]
All = Annotated[bool, typer.Option("--all", help="Include resolved and muted groups.")]
For = Annotated[
    float, typer.Option("--for", metavar="D", parser=parse_duration, help="How long, such as 1h or 7d.")
]


def list_(
    handler: HandlerFilter = None,
    since: SinceFilter = None,
    everything: All = False,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List groups of failures, the one that failed last first."""
    with open_session(c) as session:
        pages = list(
            session.pages(
                errors.list_, limit or DEFAULT_LIMIT, handler=handler, since=since, everything=everything
            )
        )
    found = [group for rows, _ in pages for group in rows]
    cursor = pages[-1][1]
    if json:
        print_json({"errors": found, "next": cursor})
        return
    if not found:
        notify("No open group of failures." if not everything else "No group of failures.")
        return
    print_table(
        ["fingerprint", "handler", "count", "first seen", "last seen", "state", "error"],
        [
            [g["fingerprint"], g["handler"], g["count"], second(g["first_seen"]), second(g["last_seen"]),
             state_of(g), g["error"] or g["error_class"]]
            for g in found
        ],
    )  # fmt: skip
    if cursor is not None and limit is None:
        notify(f"These are the {len(found)} that failed last; --limit N shows more.")


def state_of(group: Document) -> str:
    """`open`, `resolved` or `muted`."""
    return "open" if group["open"] else "resolved" if group["resolved_at"] is not None else "muted"


def show(fingerprint: Fingerprint, c: ConfigPath = None, json: AsJson = False) -> None:
    """Show a group of failures and its newest one."""
    with open_session(c) as session:
        group = session.read(partial(errors.get, fingerprint=fingerprint))
    if json:
        print_json(group)
        return
    resolved_by = f" by {group['resolved_by']}" if group["resolved_by"] else ""
    print_fields(
        [
            ("fingerprint", group["fingerprint"]),
            ("handler", group["handler"]),
            ("state", state_of(group)),
            ("class", group["error_class"]),
            ("error", group["error"]),
            ("count", f"{group['count']:,}, of which {sum(group['hours']):,} in the last 24 h"),
            ("first seen", second(group["first_seen"])),
            ("last seen", second(group["last_seen"])),
            ("resolved", group["resolved_at"] and f"{second(group['resolved_at'])}{resolved_by}"),
            ("muted until", second(group["muted_until"])),
            ("newest job", f"{group['job_id']}, attempt {group['attempt']}"),
        ]
    )
    if group["stack"]:
        print_heading("Stack of the newest failure:")
        print_text(str(group["stack"]).rstrip())


def resolve(fingerprint: Fingerprint, c: ConfigPath = None) -> None:
    """Close a group of failures until it recurs."""
    with open_session(c) as session:
        group = session.run(lambda tx: errors.resolve(tx, session.actor, fingerprint))
    notify(f"{group['fingerprint']} is resolved; the next such failure reopens it.")


def mute(fingerprint: Fingerprint, seconds: For, c: ConfigPath = None) -> None:
    """Leave a group out of lists and alerts for some time."""
    with open_session(c) as session:
        group = session.run(lambda tx: errors.mute(tx, session.actor, fingerprint, seconds))
    notify(f"{group['fingerprint']} is muted until {second(group['muted_until'])}; failures still count.")
