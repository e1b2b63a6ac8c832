"""The table of log events matches exactly what the code logs."""

from __future__ import annotations

from docs.generate import logged_events
from workerd.log_events import EVENTS


def test_every_event_is_in_the_table() -> None:
    """An event without a meaning cannot be looked up."""
    assert {event for event, _, _ in logged_events()} - EVENTS.keys() == set()


def test_every_entry_of_the_table_is_logged() -> None:
    """An alert on an event that is never logged never fires."""
    assert EVENTS.keys() - {event for event, _, _ in logged_events()} == set()
