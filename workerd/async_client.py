"""The client for asyncio: the same methods, awaitable."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from workerd.client import Client
from workerd.client_arguments import BeforeEnqueue, Source, seconds_or_none
from workerd.document_types import Job, Request
from workerd.job_spec import Duration
from workerd.operations.waiting import intervals

P = ParamSpec("P")
T = TypeVar("T")


def _awaitable(
    method: Callable[Concatenate[Client, P], T],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The method of Client, run by a thread of the AsyncClient."""

    @functools.wraps(method)
    async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._in_thread(functools.partial(method, self.client, *args, **kwargs))

    return call


class AsyncClient:
    """Enqueues and looks up jobs from asyncio, on the threads and connections of a Client.

    The parameters are those of Client, and so are the errors. A call that is cancelled while it waits for the
    store is not undone: the jobs that it enqueued may exist. `client`: the Client itself.
    """

    def __init__(
        self,
        source: Source = None,
        *,
        timeout: Duration = 5.0,
        connections: int = 4,
        name: str | None = None,
        before_enqueue: Iterable[BeforeEnqueue] = (),
        otel: bool | None = None,
    ) -> None:
        self.client = Client(
            source,
            timeout=timeout,
            connections=connections,
            name=name,
            before_enqueue=before_enqueue,
            otel=otel,
        )
        self._connections = connections
        self._pid = os.getpid()
        self._threads = self._new_threads()

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._connections, thread_name_prefix="workerd-client")

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._pid != os.getpid():  # threads do not survive a fork
            self._pid, self._threads = os.getpid(), self._new_threads()
        # The caller's context, for its current span belongs to it.
        run = functools.partial(contextvars.copy_context().run, call)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    async def close(self) -> None:
        """Close the connections, after the calls that are running."""
        await self._in_thread(self.client.close)
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- the methods of Client

    enqueue = _awaitable(Client.enqueue)
    enqueue_many = _awaitable(Client.enqueue_many)
    get = _awaitable(Client.get)
    jobs = _awaitable(Client.jobs)
    log = _awaitable(Client.log)
    edit = _awaitable(Client.edit)
    cancel = _awaitable(Client.cancel)
    retry = _awaitable(Client.retry)
    cancel_many = _awaitable(Client.cancel_many)
    retry_many = _awaitable(Client.retry_many)
    submit = _awaitable(Client.submit)
    get_request = _awaitable(Client.get_request)
    cancel_request = _awaitable(Client.cancel_request)
    pause = _awaitable(Client.pause)
    resume = _awaitable(Client.resume)
    unhold = _awaitable(Client.unhold)
    errors = _awaitable(Client.errors)
    error = _awaitable(Client.error)
    resolve_error = _awaitable(Client.resolve_error)
    mute_error = _awaitable(Client.mute_error)
    audit = _awaitable(Client.audit)
    batch = _awaitable(Client.batch)
    signal = _awaitable(Client.signal)
    schedule = _awaitable(Client.schedule)
    get_schedule = _awaitable(Client.get_schedule)
    remove_schedule = _awaitable(Client.remove_schedule)
    has_ended = _awaitable(Client.has_ended)
    request_has_ended = _awaitable(Client.request_has_ended)

    def wake(self) -> None:
        """Wake the dispatcher of this host, if there is one; does not wait."""
        self.client.wake()

    async def wait(self, job_id: str | uuid.UUID, timeout: Duration | None = None) -> Job:
        """The job once it has ended; no thread waits. Raises NotFound, TimeoutError after `timeout`."""
        await _until(functools.partial(self.has_ended, job_id), timeout)
        return await self.get(job_id)

    async def wait_request(self, request_id: str | uuid.UUID, timeout: Duration | None = None) -> Request:
        """The request once it has ended, as `wait`."""
        await _until(functools.partial(self.request_has_ended, request_id), timeout)
        return await self.get_request(request_id)


async def _until(ended: Callable[[], Awaitable[bool]], timeout: Duration | None) -> None:
    timeout_s = seconds_or_none("timeout", timeout)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pauses = intervals()
    while not await ended():
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"it has not ended within {timeout_s:g} s")
        pause = next(pauses)
        await asyncio.sleep(pause if left is None else min(pause, left))
