"""`async def` handlers: run to their end by asyncio, and interrupted where they wait.

An exception that is raised in an idle event loop never reaches the handler: the loop is torn down
around it. So an idle loop is told to wake the handler's task, in which it is raised instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import CodeType, FrameType
from typing import Any

# What runs user code in a loop, and what waits for the next thing to run: the nearest one tells.
_BUSY: CodeType = asyncio.Handle._run.__code__
_IDLE: CodeType = vars(asyncio.BaseEventLoop)["_run_once"].__code__


class Interruptible(Coroutine[Any, Any, Any]):
    """The handler's coroutine, into which an error can be raised where it waits."""

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner = inner
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None
        self._thrown = False

    def run(self) -> Any:
        """Run it to its end in an event loop of its own."""
        return asyncio.run(self._begin())

    async def _begin(self) -> Any:
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self)
        return await self._task

    def interrupt(self, frame: FrameType | None, error: BaseException) -> bool:
        """Have `error` raised where the coroutine waits, if the loop is idle at this frame; else false.

        Only the first error: while it cleans up it may have to wait again.
        """
        if self._loop is None or self._task is None or not _is_idle(frame):
            return False
        if self._error is None:
            self._error = error
            # The task is cancelled, and `throw` puts the error in the place of the cancellation.
            self._loop.call_soon_threadsafe(self._task.cancel)
        return True

    def throw(self, *given: Any) -> Any:
        error = self._error
        if error is not None and isinstance(given[0], asyncio.CancelledError) and not self._thrown:
            self._thrown = True
            return self._inner.throw(error)
        return self._inner.throw(*given)

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()


def _is_idle(frame: FrameType | None) -> bool:
    """Whether this frame is that of an event loop that has nothing to run just now."""
    while frame is not None:
        if frame.f_code is _BUSY:
            return False
        if frame.f_code is _IDLE:
            return True
        frame = frame.f_back
    return False
