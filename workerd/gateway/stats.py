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
        self._lock = asyncio.Lock()
        self._document: Document = {}
        self._read_at = -config.dispatcher.poll

    async def read(self) -> Document:
        """Those of the last poll, or new ones. Raises StoreError."""
        async with self._lock:
            if time.monotonic() - self._read_at >= self._config.dispatcher.poll:
                self._document = await self._backend.read(lambda tx: stats.read(tx, self._config))
                self._read_at = time.monotonic()
            return self._document
