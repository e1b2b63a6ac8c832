"""Coroutines that begin, and go on, at once: where a task would each time await a turn of the event loop."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")
Run = Coroutine[Any, Any, None]


class PromptFuture(asyncio.Future[T]):
    """A future for `run_promptly`, which goes on within `set_result`; a task awaits it as any other."""

    go_on: Callable[[], None] | None = None

    def set_result(self, result: T) -> None:
        super().set_result(result)
        if self.go_on is not None:
            self.go_on()

    def set_exception(self, exception: type | BaseException) -> None:
        super().set_exception(exception)
        if self.go_on is not None:
            self.go_on()


def run_promptly(coroutine: Run, start_task: Callable[..., object]) -> None:
    """Run a coroutine at once, for as long as it awaits nothing but PromptFutures; then in a task.

    Before that it must not ask for its task, as asyncio.timeout and anyio do. `start_task`: as the loop's.
    """
    _PromptRun(coroutine, start_task).go_on()


class _PromptRun:
    """The run of one coroutine, in a context of its own, as a task has."""

    def __init__(self, coroutine: Run, start_task: Callable[..., object]) -> None:
        self._coroutine = coroutine
        self._start_task = start_task
        self._context = copy_context()

    def go_on(self) -> None:
        """Run it until it awaits something."""
        self._context.run(self._step)

    def _step(self) -> None:
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            return
        except Exception as error:  # that of one must not reach others that are told with it
            message = "a request has failed"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
            return
        if isinstance(awaited, PromptFuture):
            awaited.go_on = self.go_on
        else:
            self._start_task(_rest(self._coroutine, awaited), context=self._context)


async def _rest(coroutine: Run, awaited: object) -> None:
    await _awaiting(coroutine, awaited)


@types.coroutine
def _awaiting(coroutine: Run, awaited: object) -> Generator[Any, Any, None]:
    """What is left of a coroutine that awaits this."""
    try:
        while True:
            try:
                value = yield awaited
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(value)
    except StopIteration:
        return
