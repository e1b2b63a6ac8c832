"""Concurrent enqueues in one transaction: what arrives while one transaction runs forms the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from workerd.config.model import Config
from workerd.document_types import Enqueued
from workerd.errors import CommitUnknown, StoreAway, StoreError
from workerd.gateway.backend import Backend
from workerd.gateway.posted_enqueue import Answer, PostedEnqueue
from workerd.gateway.problems import overloaded
from workerd.job import id_text, parse_id
from workerd.job_spec import NewJob
from workerd.operations import enqueue, jobs, repeats
from workerd.operations.access import Store, Tx
from workerd.operations.posting import TimeHidden
from workerd.operations.rules import HandlerRules

MAX_JOBS_PER_BATCH = 100
MAX_QUEUED_JOBS = 2000
"""Jobs that may wait for their transaction; above it requests are refused with 503."""

EnqueuedJob = tuple[Enqueued, dict[str, Any]]
"""Whether the job was created, and its document."""
Result = EnqueuedJob | Exception
"""What became of one job of a batch."""
_Queued = tuple[NewJob, asyncio.Future[EnqueuedJob]]


class BatchEnqueue:
    """Enqueues single jobs; concurrent ones share a transaction."""

    def __init__(self, backend: Backend, config: Config, rules: HandlerRules) -> None:
        self._backend = backend
        self._config = config
        self._rules = rules
        self._known = enqueue.KnownHandlers()
        self._posted = PostedEnqueue(backend, config, self._known, rules)
        self._queue: list[_Queued] = []
        self._is_busy = False
        """Whether a batch is under way, or about to be sent."""
        self._last_count = 1
        """Jobs of the batch before."""
        self._task: asyncio.Task[None] | None = None

    async def enqueue(self, job: NewJob) -> EnqueuedJob:
        """Enqueue one job; it is created or found by its id or unique key.

        Raises HandlerNotFound, TooManyWaiting, InvalidValue, StoreError, HTTPProblem 503 if overloaded.
        """
        handler = self._config.handlers.get(job.handler)
        # Whether these may be inserted depends on rows that the same batch may insert.
        if job.id is not None or job.unique_key is not None or (handler and handler.max_waiting):
            return await self._backend.write(
                lambda tx: _enqueue_one(tx, job, self._config, self._rules), handlers=[job.handler]
            )
        if len(self._queue) >= MAX_QUEUED_JOBS:
            raise overloaded()
        future: asyncio.Future[EnqueuedJob] = asyncio.get_running_loop().create_future()
        self._queue.append((job, future))
        if not self._is_busy:
            self._is_busy = True
            if self._last_count == 1:
                self._send_next()
            else:  # others are likely to come in this turn of the loop
                asyncio.get_running_loop().call_soon(self._send_next)
        return await future

    def check_server(self) -> None:
        """Ask the server of the connection for plain jobs, while it is unused, whether it may be written."""
        if not self._is_busy:  # what is enqueued meanwhile waits for the connection
            self._is_busy = True
            self._task = asyncio.create_task(self._check_server())

    async def _check_server(self) -> None:
        try:
            with suppress(StoreError):  # the next use fails with it
                await self._posted.check_server()
        finally:
            self._send_next()

    def _send_next(self) -> None:
        """Enqueue what has come meanwhile."""
        batch, self._queue = self._queue[:MAX_JOBS_PER_BATCH], self._queue[MAX_JOBS_PER_BATCH:]
        self._is_busy = bool(batch)
        if not batch:
            return
        self._last_count = len(batch)
        new_jobs = [job for job, _ in batch]
        if self._backend.draining or not self._posted.enqueue(
            new_jobs, partial(self._on_sent, new_jobs), partial(self._on_answer, batch)
        ):
            self._task = asyncio.create_task(self._run_in_thread(batch))

    def _on_sent(self, new_jobs: Sequence[NewJob]) -> None:
        self._backend.wake_early(job.handler for job in new_jobs)

    def _on_answer(self, batch: Sequence[_Queued], answer: Answer) -> None:
        if isinstance(answer, StoreError) and not isinstance(answer, CommitUnknown):
            self._task = asyncio.create_task(self._run_in_thread(batch))
            return
        if isinstance(answer, TimeHidden):
            self._task = asyncio.create_task(self._look_up(batch, answer.ids))
            return
        try:
            if isinstance(answer, CommitUnknown):
                _tell(batch, [CommitUnknown(str(answer), answer.code, ids=(one,)) for one in answer.ids])
            else:
                _tell(batch, answer)
                self._wake(batch, answer)
        finally:
            self._send_next()

    def _wake(self, batch: Sequence[_Queued], enqueued: Sequence[EnqueuedJob]) -> None:
        if len(batch) == 1:
            self._backend.wake_for(batch[0][0].handler, parse_id(enqueued[0][0].id))
        else:
            self._backend.wake(job.handler for job, _ in batch)

    async def _look_up(self, batch: Sequence[_Queued], ids: Sequence[bytes]) -> None:
        """Tell of jobs that are there."""

        def work(tx: Tx) -> list[Result]:
            return [(Enqueued(id_text(one), True), jobs.get(tx, one, self._rules)) for one in ids]

        results: Sequence[Result]
        try:
            self._backend.wake(job.handler for job, _ in batch)
            results = await self._posted.lend(lambda store: store.read(work))
        except Exception as error:
            results = [CommitUnknown(str(error), ids=(id_text(one),)) for one in ids]
        try:
            _tell(batch, results)
        finally:
            self._send_next()

    async def _run_in_thread(self, batch: Sequence[_Queued]) -> None:
        new_jobs = [job for job, _ in batch]
        results: list[Result] = []
        try:
            self._backend.refuse_while_draining()
            await self._posted.lend(partial(self._enqueue_in_parts, new_jobs, results))
        except Exception as error:
            results += [error] * (len(batch) - len(results))
        made = [job.handler for job, done in zip(new_jobs, results, strict=True) if isinstance(done, tuple)]
        try:
            _tell(batch, results)
            if made:
                self._backend.wake(made)
        finally:
            self._send_next()

    def _enqueue_in_parts(self, new_jobs: Sequence[NewJob], results: list[Result], store: Store) -> None:
        """All in one transaction; where one job is at fault, in halves until it is alone (law 7).

        `results`: of the first jobs, to which it adds. Raises StoreAway where no more can be written.
        """
        parts = [new_jobs]
        while parts:
            part = parts.pop()
            try:
                self._enqueue_together(part, results, store)
            except StoreAway:
                raise
            except Exception as error:
                if len(part) == 1:
                    results.append(error)
                else:
                    middle = len(part) // 2
                    parts += (part[middle:], part[:middle])

    def _enqueue_together(self, new_jobs: Sequence[NewJob], results: list[Result], store: Store) -> None:
        uncommitted: list[Result] = []

        def work(tx: Tx) -> None:
            admitted = enqueue.admit_each(tx, new_jobs, self._known, self._config)
            uncommitted[:] = [
                one if isinstance(one, Exception) else jobs.created(one, self._rules.of(tx, one.handler))
                for one in admitted
            ]

        try:
            store.run(work)
        except CommitUnknown as error:
            # What was refused was refused; each of the others is told of its own job.
            results += [
                done
                if isinstance(done, Exception)
                else CommitUnknown(str(error), error.code, ids=(done[0].id,))
                for done in uncommitted
            ]
            raise StoreAway(str(error), error.code) from None
        results += uncommitted


def _tell(batch: Sequence[_Queued], results: Sequence[Result]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():  # the client disconnected
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _enqueue_one(tx: Tx, job: NewJob, config: Config, rules: HandlerRules) -> EnqueuedJob:
    enqueued = enqueue.admit(tx, [job], config)[0]
    if job.id is not None:
        repeats.check_repeat(tx, [job], [enqueued])
    return enqueued, jobs.get(tx, parse_id(enqueued.id), rules)
