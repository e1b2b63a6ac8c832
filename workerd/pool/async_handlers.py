"""`async def` handlers: run by asyncio, interrupted where they await.

An exception raised in the event loop would never reach the handler: the loop is torn down around it. So
the handler's task is woken, and the exception is raised in there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Generator
from types import FrameType
from typing import Any

_LOOP = frozenset({"asyncio", "selectors"})
"""Packages whose code is never interrupted: an interrupted step of the loop would hang it."""
_LIBRARY = os.path.dirname(os.__file__) + os.sep


class Interruptible(Coroutine[Any, Any, Any]):
    """The handler's coroutine, in which an error can be raised where it awaits."""

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner = inner
        self._task: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None
        self._thrown = False

    def run(self) -> Any:
        """Run it in an event loop of its own."""
        return asyncio.run(self)

    def interrupt(self, frame: FrameType | None, error: BaseException) -> bool:
        """Raise `error` where the coroutine awaits, if this frame belongs to the loop; else return false.

        Only the first error: cleaning up may have to await again. Also false when the coroutine has ended
        and the loop waits for something else that was left in it.
        """
        if not _in_loop(frame):
            return False
        if self._task is None:  # about to start
            return True
        if self._task.done():
            return not _is_waiting(frame)
        if self._error is None:
            self._error = error
            # The task is cancelled, and `throw` replaces the cancellation with the error.
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
    """Whether this frame belongs to the event loop, or to standard library code that the loop calls."""
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
