"""What the gateway does again and again beside its requests.

A file of its own because both History and Backend take such turns: an asyncio task that raises ends without a
word, and what it did is then missing for as long as the gateway lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from workerd import log
from workerd.errors import StoreError

_log = log.get_logger("gateway")


async def repeat(name: str, period_s: float, turn: Callable[[], Awaitable[None]]) -> None:
    """Take turns until cancelled, the first one at once. What fails one is logged once, not at each turn."""
    known = ""
    while True:
        try:
            await turn()
            known = ""
        except Exception as error:
            if repr(error) != known:
                _note_failure(name, error, period_s)
            known = repr(error)
        await asyncio.sleep(period_s)


def _note_failure(name: str, error: Exception, period_s: float) -> None:
    if isinstance(error, StoreError):
        _log.error("task.refused", task=name, error=str(error))
    else:
        _log.exception("task.crashed", task=name, retry_in_s=period_s)
