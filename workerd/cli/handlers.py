"""`handlers`, `pause`, `resume`, `nodes`: what the nodes can run, and what is paused."""

from __future__ import annotations

import msgspec

from workerd.cli.options import AsJson, ConfigPath, HandlerName, Reason
from workerd.cli.output import Document, notify, print_json, print_table
from workerd.cli.session import open_session
from workerd.cli.views import second
from workerd.operations import handlers as operations
from workerd.signature import parse
from workerd.text import line, word


def handlers(c: ConfigPath = None, json: AsJson = False) -> None:
    """List handlers, their arguments and their state."""
    with open_session(c) as session:
        found = session.read(lambda tx: operations.list_(tx, session.config))
    if json:
        print_json({"handlers": found, "next": None})
        return
    print_table(
        ["handler", "nodes", "arguments", "state"],
        [[h["name"], ", ".join(h["nodes"]), _arguments(h), _state(h)] for h in found],
    )
    orphans = [h["name"] for h in found if not h["nodes"] and h["name"] not in session.config.handlers]
    if orphans:
        notify(
            f"No node has: {', '.join(map(line, orphans))}. Their jobs wait until a node is configured for "
            f"them; `workerd job cancel --handler NAME` cancels them."
        )


def _arguments(handler: Document) -> str:
    signature = parse(msgspec.json.encode(handler["signature"])) if handler["signature"] else None
    if signature is None:
        return "?" if handler["nodes"] else ""
    words = [f"{p.name}: {p.type}" if p.required else f"[{p.name}: {p.type}]" for p in signature.params]
    return ", ".join([*words, "…"] if signature.open else words)


def _state(handler: Document) -> str:
    if handler["paused_at"] is not None:
        reason = f": {handler['pause_reason']}" if handler["pause_reason"] else ""
        return f"paused {second(handler['paused_at'])} by {handler['paused_by']}{reason}"
    return "ready" if handler["nodes"] else "on no live node"


def pause(handler: HandlerName, reason: Reason = "", c: ConfigPath = None) -> None:
    """Pause a handler: no job of it starts until `resume`.

    This holds for every node once the command has returned; running jobs finish.
    """
    with open_session(c) as session:
        session.run(lambda tx: operations.pause(tx, session.actor, session.config, handler, reason or None))
    notify(f"{line(handler)} is paused; `workerd resume {word(handler)}` resumes it.")


def resume(handler: HandlerName, c: ConfigPath = None) -> None:
    """Resume a paused handler."""
    with open_session(c) as session:
        was_paused = session.run(lambda tx: operations.resume(tx, session.actor, session.config, handler))
    name = line(handler)
    notify(f"{name} is resumed." if was_paused else f"{name} was not paused; nothing has changed.")


def nodes(c: ConfigPath = None, json: AsJson = False) -> None:
    """List the nodes that share the store."""
    with open_session(c) as session:
        found = session.read(operations.list_nodes)
    if json:
        print_json({"nodes": found, "next": None})
        return
    if not found:
        notify("No node runs on this store. `workerd run` starts one.")
        return
    keys = ("name", "state", "host", "pid", "version")
    print_table(
        [*keys, "started", "lease until"],
        [
            [*(node[key] for key in keys), second(node["started_at"]), second(node["lease_until"])]
            for node in found
        ],
    )
