"""The table of log events is what the code logs, no more and no less."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import workerd
from workerd.log_events import EVENTS

LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
LOGGERS = {"log", "_log"}


def events_of(tree: ast.AST) -> Iterator[str]:
    """The first argument of each call `log.LEVEL("event", …)`, however the logger is held."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        if node.func.attr in LEVELS and name in LOGGERS and node.args:
            event = node.args[0]
            if isinstance(event, ast.Constant) and isinstance(event.value, str):
                yield event.value


def logged() -> set[str]:
    root = Path(workerd.__file__).parent
    return {event for file in root.rglob("*.py") for event in events_of(ast.parse(file.read_text()))}


def test_every_event_is_in_the_table() -> None:
    """An event without a meaning cannot be looked up by the person who reads it."""
    names = {event for event in logged() if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", event)}
    assert names - EVENTS.keys() == set()


def test_every_entry_of_the_table_is_logged() -> None:
    """Nobody waits for an event that is never written."""
    assert set(EVENTS) - logged() - {"store.available", "store.unavailable"} == set()
