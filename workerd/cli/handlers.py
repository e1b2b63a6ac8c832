"""`handlers`, `pause`, `resume`, `nodes`: what the nodes can run, and what is paused."""

from __future__ import annotations

import getpass
import os

from workerd import documents
from workerd.cli.options import AsJson, ConfigPath, HandlerName, Reason
from workerd.cli.output import notify, print_json, print_table
from workerd.cli.session import open_session, wake
from workerd.cli.views import second
from workerd.clock import to_rfc3339
from workerd.config.model import Config
from workerd.operations.enqueue import check_handlers
from workerd.signature import parse
from workerd.store import handlers as store_handlers
from workerd.store import nodes as store_nodes
from workerd.store.base import Tx
from workerd.store.handlers import HandlerRow
from workerd.text import line


def handlers(c: ConfigPath = None, json: AsJson = False) -> None:
    """List handlers, their arguments and their state."""
    with open_session(c) as (config, store):
        rows = _with_configured(config, store.read(store_handlers.list_))
    if json:
        print_json({"handlers": [documents.handler(row) for row in rows], "next": None})
        return
    print_table(
        ["handler", "nodes", "arguments", "state"],
        [[row.name, ", ".join(row.nodes), _arguments(row), _state(row)] for row in rows],
    )
    orphans = [row.name for row in rows if not row.nodes and row.name not in config.handlers]
    if orphans:
        notify(
            f"No node has: {', '.join(map(line, orphans))}. Their jobs wait until a node is configured for "
            f"them; `workerd job cancel --handler NAME` cancels them."
        )


def _with_configured(config: Config, found: list[HandlerRow]) -> list[HandlerRow]:
    names = {row.name for row in found}
    missing = [HandlerRow(name=name, known=True) for name in config.handlers if name not in names]
    return sorted([*found, *missing], key=lambda row: row.name)


def _arguments(row: HandlerRow) -> str:
    signature = parse(row.signature) if row.signature else None
    if signature is None:
        return "?" if row.nodes else ""
    words = [f"{p.name}: {p.type}" if p.required else f"[{p.name}: {p.type}]" for p in signature.params]
    return ", ".join([*words, "…"] if signature.open else words)


def _state(row: HandlerRow) -> str:
    if row.paused_at is not None:
        reason = f": {row.pause_reason}" if row.pause_reason else ""
        return f"paused {second(to_rfc3339(row.paused_at))} by {row.paused_by}{reason}"
    return "ready" if row.nodes else "on no live node"


def pause(handler: HandlerName, reason: Reason = "", c: ConfigPath = None) -> None:
    """Pause a handler: no job of it starts until `resume`.

    This holds for every node once the command has returned; running jobs finish.
    """

    def pause_known(tx: Tx) -> None:
        check_handlers([handler], store_handlers.known(tx), config)
        store_handlers.pause(tx, handler, user_at_host(), reason or None)

    with open_session(c) as (config, store):
        store.run(pause_known)
        wake(config)
    notify(f"{line(handler)} is paused; `workerd resume {line(handler)}` resumes it.")


def resume(handler: HandlerName, c: ConfigPath = None) -> None:
    """Resume a paused handler."""
    with open_session(c) as (config, store):
        was_paused = store.run(lambda tx: store_handlers.resume(tx, handler))
        wake(config)
    name = line(handler)
    notify(f"{name} is resumed." if was_paused else f"{name} was not paused; nothing has changed.")


def user_at_host() -> str:
    """Who runs this command, as others will read it."""
    host = os.uname().nodename
    try:
        return f"{getpass.getuser()}@{host}"
    except (KeyError, OSError):
        return f"user {os.getuid()}@{host}"


def nodes(c: ConfigPath = None, json: AsJson = False) -> None:
    """List the nodes that share the store."""
    with open_session(c) as (_, store):
        found = store.read(lambda tx: [documents.node(row, tx.now) for row in store_nodes.list_(tx)])
    if json:
        print_json({"nodes": found, "next": None})
        return
    if not found:
        notify("No node runs on this store. `workerd run` starts one.")
        return
    keys = ["name", "state", "host", "pid", "version", "started_at", "lease_until"]
    print_table([key.replace("_", " ") for key in keys], [[node[key] for key in keys] for node in found])
