"""Turns that are taken until the gateway ends, whatever becomes of one of them."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from workerd.errors import StoreError, StoreRefused
from workerd.gateway.periodic import repeat


@pytest.mark.parametrize(
    ("error", "event"),
    [(ValueError("a bug"), "task.crashed"), (StoreRefused("denied", 1142), "task.refused")],
)
def test_a_turn_that_fails_is_not_the_last(error: Exception, event: str) -> None:
    """The log has it once, and again when it comes back after a turn that was good."""
    turns = []

    async def turn() -> None:
        turns.append(1)
        if len(turns) == 8:
            raise asyncio.CancelledError
        if len(turns) not in (1, 4):
            raise error

    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        asyncio.run(repeat("look", 0.0, turn))
    assert len(turns) == 8
    assert [(entry["event"], entry["task"]) for entry in logs] == [(event, "look")] * 2
    assert isinstance(error, StoreError) == ("error" in logs[0])
