"""`handlers`, `pause`, `resume`, `nodes`: who can run what, and what is held back."""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING, Annotated

import typer

from workerd.cli.options import AsJson, ConfigPath, Reason
from workerd.cli.output import put_json, say, table
from workerd.cli.session import opened, wake
from workerd.clock import to_rfc3339
from workerd.config.model import Config
from workerd.text import line

if TYPE_CHECKING:
    from workerd.store.handlers import HandlerRow


HandlerName = Annotated[str, typer.Argument(metavar="HANDLER", help="The handler's name.")]


def handlers(c: ConfigPath = None, json: AsJson = False) -> None:
    """List the handlers, what they take, what is paused."""
    from workerd import documents
    from workerd.store import handlers as store_handlers

    with opened(c) as (config, store):
        found = store.read(store_handlers.list_)
    rows = _with_configured(config, found)
    if json:
        put_json({"handlers": [documents.handler(row) for row in rows], "next": None})
        return
    table(
        ["handler", "nodes", "takes", "state"],
        [[row.name, ", ".join(row.nodes), _takes(row), _state(row)] for row in rows],
    )
    orphans = [row.name for row in rows if not row.nodes and row.name not in config.handlers]
    if orphans:
        say(
            f"No node has: {', '.join(map(line, orphans))}. Their jobs wait until a node is configured for "
            f"them, or `workerd job cancel --handler NAME` ends them."
        )


def _with_configured(config: Config, found: list[HandlerRow]) -> list[HandlerRow]:
    from workerd.store.handlers import HandlerRow

    names = {row.name for row in found}
    missing = [HandlerRow(name=name, known=True) for name in config.handlers if name not in names]
    return sorted([*found, *missing], key=lambda row: row.name)


def _takes(row: HandlerRow) -> str:
    from workerd.signature import parse

    signature = parse(row.signature) if row.signature else None
    if signature is None:
        return "?" if row.nodes else ""
    words = [f"{p.name}: {p.type}" if p.required else f"[{p.name}: {p.type}]" for p in signature.params]
    return ", ".join([*words, "…"] if signature.open else words)


def _state(row: HandlerRow) -> str:
    if row.paused_at is not None:
        why = f": {row.pause_reason}" if row.pause_reason else ""
        return f"paused {to_rfc3339(row.paused_at)[:19]}Z by {row.paused_by}{why}"
    return "ready" if row.nodes else "on no live node"


def pause(handler: HandlerName, reason: Reason = "", c: ConfigPath = None) -> None:
    """Hold a handler back until `resume`.

    No node claims its jobs once this has returned; what runs goes on to its end.
    """
    from workerd.operations.enqueue import check_handlers
    from workerd.store import handlers as store_handlers

    with opened(c) as (config, store):
        known = store.read(store_handlers.known)
        check_handlers([handler], known, config)
        store.run(lambda tx: store_handlers.pause(tx, handler, who(), reason or None))
        wake(config)
    say(f"{line(handler)} is paused; `workerd resume {line(handler)}` lets it go on.")


def resume(handler: HandlerName, c: ConfigPath = None) -> None:
    """Let a paused handler go on."""
    from workerd.store import handlers as store_handlers

    with opened(c) as (config, store):
        was_paused = store.run(lambda tx: store_handlers.resume(tx, handler))
        wake(config)
    name = line(handler)
    say(f"{name} goes on." if was_paused else f"{name} was not paused; nothing has changed.")


def who() -> str:
    """The person at the keyboard, for others to read."""
    try:
        return f"{getpass.getuser()}@{os.uname().nodename}"
    except (KeyError, OSError):
        return f"user {os.getuid()}@{os.uname().nodename}"


def nodes(c: ConfigPath = None, json: AsJson = False) -> None:
    """List the nodes that share this store."""
    from workerd import documents
    from workerd.store import nodes as store_nodes

    with opened(c) as (_, store):
        found = store.read(lambda tx: [documents.node(row, tx.now) for row in store_nodes.list_(tx)])
    if json:
        put_json({"nodes": found, "next": None})
        return
    keys = ["name", "state", "host", "pid", "version", "started_at", "lease_until"]
    if not found:
        say("No node runs on this store: start one with `workerd run`.")
        return
    table([key.replace("_", " ") for key in keys], [[node[key] for key in keys] for node in found])
