"""Figures for scalers, read from the store at most once a poll however many ask."""

from __future__ import annotations

import asyncio
import time

from workerd.config.model import Config
from workerd.document_types import Document
from workerd.gateway.backend import Backend
from workerd.operations import stats


class StatsCache:
    """The figures, as old as a poll of the dispatcher at most."""

    def __init__(self, backend: Backend, config: Config) -> None:
        self._backend = backend
        self._config = config
        self._reading: asyncio.Task[Document] | None = None
        self._document: Document = {}
        self._read_at = -config.dispatcher.poll

    async def read(self) -> Document:
        """Those of the last poll, or new ones. Raises StoreError, HTTPProblem 503 if overloaded.

        All who ask meanwhile share one look at the store, and its error: one after the other, each would wait
        as long as a store that hangs lets it.
        """
        if self._reading is None:
            if time.monotonic() - self._read_at < self._config.dispatcher.poll:
                return self._document
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._end)
        return await asyncio.shield(self._reading)  # a client that leaves must not cancel it for the others

    async def _read(self) -> Document:
        self._document = await self._backend.read(lambda tx: stats.read(tx, self._config))
        self._read_at = time.monotonic()
        return self._document

    def _end(self, task: asyncio.Task[Document]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # if all who asked have left, nobody else looks at it
