"""Progress of running attempts and handlers seen by pools, written beside the outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from workerd import log
from workerd.errors import StoreAway, StoreBusy, StoreRefused
from workerd.ingester.connections import Connection
from workerd.ingester.pipeline import PipelineMode, WritePipeline
from workerd.job import AttemptRef
from workerd.messages import Announced, Progress, Seen
from workerd.runtime.loop import Loop
from workerd.store import handlers, outcomes
from workerd.store.base import Store, Tx

WRITE_INTERVAL_S = 0.2
SEEN_DELAY_S = 0.01
"""In which the other handlers of a pool arrive."""
BUSY_PAUSE_S = 1.0
"""Until rows that another transaction locks are tried again."""
RETRY_FOR_S = 0.5
"""Shorter than the wait for one lock: outcomes wait meanwhile."""
MAX_ATTEMPTS_PER_WRITE = 200
"""Each is a statement of its own, and outcomes wait meanwhile."""
MAX_ATTEMPTS = 2000
MAX_HANDLERS = 10_000
"""So many attempts and handlers are kept in memory; further ones are dropped."""

T = TypeVar("T")

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
        self._again: dict[str, Seen] = {}  # to be written unless the store has them
        self._waiting: dict[str, list[Connection]] = {}  # for a handler to be announced
        self._seen_due = False
        self._due = False
        self._busy = False

    def on_progress(self, message: Progress) -> None:
        """An attempt reported progress."""
        ref = AttemptRef(message.id, message.attempt)
        if ref in self._progress or len(self._progress) < MAX_ATTEMPTS:
            self._progress[ref] = message
            self._schedule()

    def on_seen(self, connection: Connection, message: Seen) -> None:
        """A pool loaded a handler; it is answered with Announced."""
        if message.handler in self._seen or len(self._seen) < MAX_HANDLERS:
            self._seen[message.handler] = message
            self._waiting.setdefault(message.handler, []).append(connection)
            self._write_soon()
        else:
            connection.send(Announced(message.handler))

    def announce_again(self, seen: Mapping[str, Seen]) -> None:
        """Write these handlers, which were written before, unless the store still has them."""
        self._again |= seen
        if self._again:
            self._write_soon()

    def _write_soon(self) -> None:
        # Callers enqueue as soon as the node is ready, which it is not before this is written.
        if not self._seen_due and not self._busy:
            self._seen_due = True
            self._loop.call_later(SEEN_DELAY_S, self._on_seen_timer)
        self._schedule()

    def _on_seen_timer(self) -> None:
        self._seen_due = False
        self.write()

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
                locked = self._write_seen()
                self._write_progress()
                self._note_locks(f"the rows of {', '.join(locked)} are locked" if locked else "")
            except StoreBusy as error:
                self._note_locks(str(error))
                self._progress.clear()
            except StoreAway as error:
                self._pipeline.store_lost(error)
        if not self._store_available:
            self._progress.clear()
            if self._pipeline.reached:
                self._answer(self._seen)
        if self._seen or self._again or self._progress:
            self._schedule()

    def _note_locks(self, error: str) -> None:
        """Try again later: outcomes are in other rows, so for them the store is available."""
        if error and not self._busy:
            _log.warning("handler.write_delayed", error=error)
        self._busy = bool(error)

    def _write_progress(self) -> None:
        refs = list(self._progress)[:MAX_ATTEMPTS_PER_WRITE]
        messages = [self._progress.pop(ref) for ref in refs]
        if messages:
            self._run(lambda tx: outcomes.progress(tx, messages, self._node_id))

    def _write_seen(self) -> list[str]:
        """Write the handlers; returns those that another transaction has locked."""
        if self._again:
            again = self._again
            missing = self._store.read(
                lambda tx: handlers.unannounced(tx, _signatures(again), self._node_name)
            )
            self._again = {}
            self._seen |= {name: again[name] for name in missing if name not in self._seen}
        locked = []
        for name, seen in list(self._seen.items()):
            if self._run(partial(_write_handler, seen=seen, node=self._node_name)) is False:
                locked.append(name)
            else:
                del self._seen[name]
            self._answer([name])  # a lock on one handler does not keep the node from becoming ready
        return locked

    def _answer(self, names: Iterable[str]) -> None:
        for name in names:
            for connection in self._waiting.pop(name, ()):
                connection.send(Announced(name))

    def _run(self, work: Callable[[Tx], T]) -> T | None:
        try:
            return self._store.run(work, retry_for_s=RETRY_FOR_S)
        except StoreRefused as error:
            _log.warning("progress.refused", error=str(error))
            return None


def _signatures(seen: Mapping[str, Seen]) -> dict[str, bytes | None]:
    return {name: message.signature for name, message in seen.items()}


def _write_handler(tx: Tx, seen: Seen, node: str) -> bool:
    return handlers.seen(tx, seen.handler, seen.signature, node)
