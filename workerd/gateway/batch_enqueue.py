"""Concurrent enqueues share one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from workerd import documents
from workerd.config.model import Config
from workerd.documents import Enqueued
from workerd.errors import StoreAway
from workerd.gateway.backend import Backend
from workerd.gateway.problems import HTTPProblem
from workerd.job import Key, parse_id
from workerd.job_spec import Checked
from workerd.operations import enqueue
from workerd.store import handlers, queries
from workerd.store.base import Tx
from workerd.store.columns import jobs_by_key

# Jobs that come at the same time go to the store in one transaction: that is where speed is won.
#
# Nobody waits for others to come: while one transaction is under way, what comes meanwhile makes the next.
#

MOST = 100
"""Jobs of one transaction."""
MOST_WAITING = 2000
"""Jobs that may wait for their transaction; above it the gateway is busy and says so."""

Made = tuple[Enqueued, dict[str, Any]]
_Place = tuple[Checked, asyncio.Future[Made]]


class BatchEnqueue:
    """Enqueues single jobs, many at once where many come at once."""

    def __init__(self, backend: Backend, config: Config) -> None:
        self._backend = backend
        self._config = config
        self._places: list[_Place] = []
        self._task: asyncio.Task[None] | None = None

    async def enqueue(self, job: Checked) -> Made:
        """The job as it was made or found. Raises what its admission, or the store, has against it."""
        handler = self._config.handlers.get(job.handler)
        # These are judged by what is there already, which may come in the same transaction.
        if job.id is not None or job.unique_key is not None or (handler and handler.max_waiting):
            return await self._backend.run(lambda tx: _one(tx, job, self._config))
        if len(self._places) >= MOST_WAITING:
            raise HTTPProblem(
                503, "The gateway has too much to do just now; try again.", {"Retry-After": "1"}
            )
        future: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self._places.append((job, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._places:
                part, self._places = self._places[:MOST], self._places[MOST:]
                await self._together(part)
        finally:
            self._task = None

    async def _together(self, part: Sequence[_Place]) -> None:
        jobs = [job for job, _ in part]
        try:
            results = await self._backend.run(lambda tx: _all(tx, jobs, self._config))
        except (StoreAway, HTTPProblem) as error:
            results = [error] * len(part)
        except Exception as error:
            if len(part) > 1:  # one of them is at fault: each on its own
                for place in part:
                    await self._together([place])
                return
            results = [error]
        for (_, future), result in zip(part, results, strict=True):
            if future.done():  # its client went away
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def _one(tx: Tx, job: Checked, config: Config) -> Made:
    done = enqueue.admit(tx, [job], config)[0]
    return done, documents.job(queries.get(tx, parse_id(done.id)))


def _all(tx: Tx, jobs: Sequence[Checked], config: Config) -> list[Made | Exception]:
    known = handlers.known(tx)
    refused = [enqueue.refusal(job, known, config) for job in jobs]
    made = iter(enqueue.insert(tx, [job for job, why in zip(jobs, refused, strict=True) if why is None]))
    done = [next(made) if why is None else why for why in refused]
    keys: list[Key] = [(parse_id(one.id), 1) for one in done if isinstance(one, Enqueued)]
    rows = jobs_by_key(tx, keys)
    results: list[Made | Exception] = []
    for one in done:
        if isinstance(one, Enqueued):
            row = rows[parse_id(one.id), 1]
            results.append((one, documents.job(queries.StoredJob(row=row, attempts=[row]))))
        else:
            results.append(one)
    return results
