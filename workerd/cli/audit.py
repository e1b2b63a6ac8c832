"""`audit`: what people and programs changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import typer

from workerd.cli.options import AsJson, ConfigPath, Limit, SinceFilter
from workerd.cli.output import Document, notify, print_heading, print_json, print_table
from workerd.cli.session import open_session
from workerd.cli.views import second
from workerd.operations import audit as operations

DEFAULT_LIMIT = 50
MAX_DETAIL_CHARS = 200
"""Longer details are cut in tables; --json prints them whole."""

ActorFilter = Annotated[
    str | None, typer.Option("--actor", metavar="A", help="Only what this person or program did.")
]
TargetFilter = Annotated[
    str | None, typer.Option("--target", metavar="T", help="Only what was done to this id or name.")
]


def audit(
    actor: ActorFilter = None,
    target: TargetFilter = None,
    since: SinceFilter = None,
    limit: Limit = None,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """List what people and programs changed, newest first."""
    filters: dict[str, Any] = {"actor": actor, "target": target, "since": since}
    with open_session(c) as session:
        pages = list(session.pages(operations.list_, limit or DEFAULT_LIMIT, **filters))
    found = [act for rows, _ in pages for act in rows]
    cursor = pages[-1][1]
    if json:
        print_json({"audit": found, "next": cursor})
        return
    print_table(
        ["at", "actor", "role", "via", "action", "target", "address", "detail"],
        [
            [second(act["at"]), act["actor"], act["role"], act["via"], act["action"], act["target"],
             act["address"], _detail(act)]
            for act in found
        ],
    )  # fmt: skip
    if cursor is not None and limit is None:
        notify(f"These are the newest {len(found)}; --limit N shows more.")


def print_acts(acts: Iterable[Document]) -> None:
    """Print who did what to one job, if anybody did."""
    rows = [[second(act["at"]), act["actor"], act["action"], act["via"], _detail(act)] for act in acts]
    if rows:
        print_heading("Who did what:")
        print_table(["at", "actor", "action", "via", "detail"], rows)


def _detail(act: Document) -> str | None:
    if act["detail"] is None:
        return None
    text = msgspec.json.encode(act["detail"]).decode()
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[:MAX_DETAIL_CHARS]} …"
