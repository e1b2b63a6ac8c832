"""Concurrent enqueues in one transaction: what arrives while one transaction runs forms the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from workerd import documents
from workerd.config.model import Config
from workerd.documents import Enqueued
from workerd.errors import StoreAway
from workerd.gateway.backend import Backend
from workerd.gateway.problems import HTTPProblem, overloaded
from workerd.job import AttemptRef, parse_id
from workerd.job_spec import NewJob
from workerd.operations import enqueue
from workerd.store import handlers, queries
from workerd.store.base import Tx
from workerd.store.columns import jobs_by_key

MAX_JOBS_PER_BATCH = 100
MAX_QUEUED_JOBS = 2000
"""Jobs that may wait for their transaction; above it requests are refused with 503."""

EnqueuedJob = tuple[Enqueued, dict[str, Any]]
"""Whether the job was created, and its document."""
_Queued = tuple[NewJob, asyncio.Future[EnqueuedJob]]


class BatchEnqueue:
    """Enqueues single jobs; concurrent ones share a transaction."""

    def __init__(self, backend: Backend, config: Config) -> None:
        self._backend = backend
        self._config = config
        self._queue: list[_Queued] = []
        self._task: asyncio.Task[None] | None = None

    async def enqueue(self, job: NewJob) -> EnqueuedJob:
        """Enqueue one job; it is created or found by its id or unique key.

        Raises HandlerNotFound, TooManyWaiting, InvalidValue, StoreError, HTTPProblem 503 if overloaded.
        """
        handler = self._config.handlers.get(job.handler)
        # Whether these may be inserted depends on rows that the same batch may insert.
        if job.id is not None or job.unique_key is not None or (handler and handler.max_waiting):
            return await self._backend.write(lambda tx: _enqueue_one(tx, job, self._config))
        if len(self._queue) >= MAX_QUEUED_JOBS:
            raise overloaded()
        future: asyncio.Future[EnqueuedJob] = asyncio.get_running_loop().create_future()
        self._queue.append((job, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._queue:
                batch, self._queue = self._queue[:MAX_JOBS_PER_BATCH], self._queue[MAX_JOBS_PER_BATCH:]
                await self._enqueue_batch(batch)
        finally:
            self._task = None

    async def _enqueue_batch(self, batch: Sequence[_Queued]) -> None:
        jobs = [job for job, _ in batch]
        try:
            results = await self._backend.write(lambda tx: _enqueue_all(tx, jobs, self._config))
        except (StoreAway, HTTPProblem) as error:
            results = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:  # one job is at fault: try each alone
                for queued in batch:
                    await self._enqueue_batch([queued])
                return
            results = [error]
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # the client disconnected
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def _enqueue_one(tx: Tx, job: NewJob, config: Config) -> EnqueuedJob:
    done = enqueue.admit(tx, [job], config)[0]
    return done, documents.job(queries.get(tx, parse_id(done.id)))


def _enqueue_all(tx: Tx, jobs: Sequence[NewJob], config: Config) -> list[EnqueuedJob | Exception]:
    known = handlers.known(tx)
    refused = [enqueue.refusal(job, known, config) for job in jobs]
    made = iter(enqueue.insert(tx, [job for job, why in zip(jobs, refused, strict=True) if why is None]))
    done = [next(made) if why is None else why for why in refused]
    keys = [AttemptRef(parse_id(one.id), 1) for one in done if isinstance(one, Enqueued)]
    rows = jobs_by_key(tx, keys)
    results: list[EnqueuedJob | Exception] = []
    for one in done:
        if isinstance(one, Enqueued):
            row = rows[AttemptRef(parse_id(one.id), 1)]
            results.append((one, documents.job(queries.StoredJob(row=row, attempts=[row]))))
        else:
            results.append(one)
    return results
