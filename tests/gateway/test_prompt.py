"""Coroutines that run at once: the same as in a task, without the loop's turns."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from workerd.gateway.prompt import PromptFuture, run_promptly

name: ContextVar[str] = ContextVar("name", default="none")


def no_task(*_: object, **__: object) -> None:
    raise AssertionError("a task was started")


def test_it_goes_on_where_its_future_is_set() -> None:
    """Without a task, in its own context, as often as it awaits one."""
    seen: list[object] = []

    async def wait(first: PromptFuture[int], second: PromptFuture[int]) -> None:
        name.set("its own")
        seen.append(await first)
        seen.append(name.get())
        seen.append(await second)

    async def main() -> None:
        first, second = PromptFuture[int](), PromptFuture[int]()
        run_promptly(wait(first, second), no_task)
        assert seen == []
        first.set_result(1)
        assert seen == [1, "its own"]
        assert name.get() == "none"
        second.set_result(2)
        assert seen == [1, "its own", 2]

    asyncio.run(main())


def test_an_exception_of_its_future_is_raised_in_it() -> None:
    """As in a task."""

    async def wait(future: PromptFuture[int]) -> None:
        with pytest.raises(ValueError, match="wrong"):
            await future

    async def main() -> None:
        future = PromptFuture[int]()
        run_promptly(wait(future), no_task)
        future.set_exception(ValueError("wrong"))

    asyncio.run(main())


def test_what_it_raises_reaches_nobody_else() -> None:
    """Whoever sets the future has others to tell."""
    told: list[dict[str, Any]] = []

    async def wait(future: PromptFuture[int]) -> None:
        await future
        raise ValueError("wrong")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        future = PromptFuture[int]()
        run_promptly(wait(future), no_task)
        future.set_result(1)

    asyncio.run(main())
    assert [str(context["exception"]) for context in told] == ["wrong"]


def test_it_goes_on_in_a_task_once_it_awaits_anything_else() -> None:
    """With its context, what it is sent and what is thrown into it, up to its end or its cancellation."""
    seen: list[object] = []

    async def run(future: asyncio.Future[int], never: asyncio.Future[int]) -> None:
        name.set("its own")
        seen.append(await future)
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            seen.append(name.get())
        try:
            await never
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        loop, tasks = asyncio.get_running_loop(), []
        future, never = loop.create_future(), loop.create_future()
        run_promptly(
            run(future, never), lambda *given, **more: tasks.append(loop.create_task(*given, **more))
        )
        loop.call_soon(future.set_result, 1)
        while len(seen) < 2:
            await asyncio.sleep(0)
        assert seen == [1, "its own"]
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert seen == [1, "its own", "cancelled"]

    asyncio.run(main())


def test_a_task_awaits_its_future_as_any_other() -> None:
    """Where a request is not served promptly."""

    async def main() -> None:
        future = PromptFuture[int]()
        asyncio.get_running_loop().call_soon(future.set_result, 5)
        assert await future == 5

    asyncio.run(main())
