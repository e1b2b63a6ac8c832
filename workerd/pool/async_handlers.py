"""`async def` handlers: run by asyncio, interrupted where they wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Generator
from types import FrameType
from typing import Any

# `async def` handlers: run to their end by asyncio, and interrupted where they wait.
#
# An exception that is raised in the event loop never reaches the handler: the loop is torn down around
# it. So the loop is told to wake the handler's task, in which it is raised instead.
#

_LOOP = frozenset({"asyncio", "selectors"})
"""Packages whose code is never interrupted: a step that is cut short there is one that never ends."""
_LIBRARY = os.path.dirname(os.__file__) + os.sep


class Interruptible(Coroutine[Any, Any, Any]):
    """The handler's coroutine, into which an error can be raised where it waits."""

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner = inner
        self._task: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None
        self._thrown = False

    def run(self) -> Any:
        """Run it to its end in an event loop of its own."""
        return asyncio.run(self)

    def interrupt(self, frame: FrameType | None, error: BaseException) -> bool:
        """Have `error` raised where the coroutine waits, if this frame is the loop's own; else false.

        Only the first error: while it cleans up it may have to wait again. False as well when it has ended,
        and the loop waits for something else that was left in it.
        """
        if not _in_loop(frame):
            return False
        if self._task is None:  # about to begin
            return True
        if self._task.done():
            return not _is_waiting(frame)
        if self._error is None:
            self._error = error
            # The task is cancelled, and `throw` puts the error in the place of the cancellation.
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        return True

    def send(self, value: Any) -> Any:
        if self._task is None:
            self._task = asyncio.current_task()
        return self._inner.send(value)

    def throw(self, *given: Any) -> Any:
        error = self._error
        if error is not None and isinstance(given[0], asyncio.CancelledError) and not self._thrown:
            self._thrown = True
            return self._inner.throw(error)
        return self._inner.throw(*given)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()


def _in_loop(frame: FrameType | None) -> bool:
    """Whether this frame is the event loop's own, or of what the loop calls in the standard library."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] in _LOOP or name == __name__:
            return True
        if not _is_library(frame.f_code.co_filename):
            return False
        frame = frame.f_back
    return False


def _is_waiting(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals.get("__name__") == "selectors"


def _is_library(path: str) -> bool:
    return path.startswith("<frozen ") or (path.startswith(_LIBRARY) and "-packages" not in path)
