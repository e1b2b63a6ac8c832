"""Progress of running attempts and handlers seen by pools, written beside the outcomes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from workerd import log
from workerd.errors import StoreAway, StoreBusy, StoreRefused
from workerd.ingester.pipeline import PipelineMode, WritePipeline
from workerd.job import AttemptRef
from workerd.messages import Progress, Seen
from workerd.runtime.loop import Loop
from workerd.store import handlers, outcomes
from workerd.store.base import Store, Tx

WRITE_INTERVAL_S = 0.2
BUSY_PAUSE_S = 5.0
"""Until rows that another transaction locks are tried again: outcomes wait while a lock is waited for."""
MAX_ATTEMPTS_PER_WRITE = 200
"""Each is a statement of its own, and outcomes wait meanwhile."""
MAX_ATTEMPTS = 2000
MAX_HANDLERS = 10_000
"""So many attempts and handlers are kept in memory; further ones are dropped."""

_log = log.get_logger("ingester")


class ProgressWriter:
    """Keeps the newest progress of each attempt and each handler seen, and writes them together."""

    def __init__(
        self, loop: Loop, store: Store, node_id: bytes, node_name: str, pipeline: WritePipeline
    ) -> None:
        self._loop = loop
        self._store = store
        self._node_id = node_id
        self._node_name = node_name
        self._pipeline = pipeline
        self._progress: dict[AttemptRef, Progress] = {}
        self._seen: dict[str, Seen] = {}
        self._due = False
        self._busy = False

    def on_progress(self, message: Progress) -> None:
        """An attempt reported progress."""
        ref = AttemptRef(message.id, message.attempt)
        if ref in self._progress or len(self._progress) < MAX_ATTEMPTS:
            self._progress[ref] = message
            self._schedule()

    def on_seen(self, message: Seen) -> None:
        """A pool loaded a handler."""
        if message.handler in self._seen or len(self._seen) < MAX_HANDLERS:
            self._seen[message.handler] = message
            self._schedule()

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_later(BUSY_PAUSE_S if self._busy else WRITE_INTERVAL_S, self._on_timer)

    def _on_timer(self) -> None:
        self._due = False
        self.write()

    @property
    def _store_available(self) -> bool:
        return self._pipeline.mode is not PipelineMode.AWAY

    def write(self) -> None:
        """Write what is waiting if the store is available; progress that cannot be written is dropped."""
        if self._store_available:
            try:
                self._write_seen()
                self._write_progress()
                self._busy = False
            except StoreBusy as error:
                self._wait_for_locks(error)
            except StoreAway as error:
                self._pipeline.store_lost(error)
        if not self._store_available:
            self._progress.clear()
        if self._seen or self._progress:
            self._schedule()

    def _wait_for_locks(self, error: StoreBusy) -> None:
        """Try again later: outcomes are in other rows, so for them the store is available."""
        if not self._busy:
            self._busy = True
            _log.warning("handler.write_delayed", error=str(error))
        self._progress.clear()

    def _write_progress(self) -> None:
        refs = list(self._progress)[:MAX_ATTEMPTS_PER_WRITE]
        messages = [self._progress.pop(ref) for ref in refs]
        if messages:
            self._run(lambda tx: outcomes.progress(tx, messages, self._node_id))

    def _write_seen(self) -> None:
        for name, seen in list(self._seen.items()):
            self._run(partial(_write_handler, seen=seen, node=self._node_name))
            del self._seen[name]

    def _run(self, work: Callable[[Tx], object]) -> None:
        try:
            self._store.run(work)
        except StoreRefused as error:
            _log.warning("progress.refused", error=str(error))


def _write_handler(tx: Tx, seen: Seen, node: str) -> None:
    handlers.seen(tx, seen.handler, seen.signature, node)
