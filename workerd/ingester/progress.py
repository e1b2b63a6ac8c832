"""Progress of running attempts and announced handlers, written beside the outcomes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from workerd import log
from workerd.errors import StoreAway, StoreBusy, StoreRefused
from workerd.job import AttemptRef
from workerd.messages import Progress, Seen
from workerd.runtime.loop import Loop
from workerd.store import handlers, outcomes
from workerd.store.base import Store, Tx

EVERY = 0.2
"""Seconds between two writes."""
BUSY_PAUSE = 5.0
"""Seconds until notes whose rows others hold are tried again: outcomes wait while a lock is waited for."""
AT_ONCE = 200
"""Attempts of one write: each is a statement of its own, and outcomes wait meanwhile."""
ATTEMPTS = 2000
HANDLERS = 10_000
"""So many attempts and handlers are kept; what comes beyond them is dropped."""

_log = log.get_logger("ingester")


class ProgressWriter:
    """Keeps the newest note of each attempt and handler, and writes them together now and then.

    `live` tells whether the store answers; `gone` is called when it turns out not to.
    """

    def __init__(
        self,
        loop: Loop,
        store: Store,
        node_id: bytes,
        node_name: str,
        live: Callable[[], bool],
        gone: Callable[[StoreAway], None],
    ) -> None:
        self._loop = loop
        self._store = store
        self._node_id = node_id
        self._node_name = node_name
        self._live = live
        self._gone = gone
        self._progress: dict[AttemptRef, Progress] = {}
        self._seen: dict[str, Seen] = {}
        self._due = False
        self._busy = False

    def progress(self, message: Progress) -> None:
        """An attempt told how far it is."""
        key = AttemptRef(message.id, message.attempt)
        if key in self._progress or len(self._progress) < ATTEMPTS:
            self._progress[key] = message
            self._schedule()

    def seen(self, message: Seen) -> None:
        """A pool has loaded a handler."""
        if message.handler in self._seen or len(self._seen) < HANDLERS:
            self._seen[message.handler] = message
            self._schedule()

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_later(BUSY_PAUSE if self._busy else EVERY, self._timed)

    def _timed(self) -> None:
        self._due = False
        self.write()

    def write(self) -> None:
        """Write what is waiting if the store answers; progress that cannot be written now is forgotten."""
        if self._live():
            try:
                self._write_seen()
                self._write_progress()
                self._busy = False
            except StoreBusy as error:
                self._wait_for_others(error)
            except StoreAway as error:
                self._gone(error)
        if not self._live():
            self._progress.clear()
        if self._seen or self._progress:
            self._schedule()

    def _wait_for_others(self, error: StoreBusy) -> None:
        """Leave notes for later: outcomes are in other rows, for them the store is not away."""
        if not self._busy:
            self._busy = True
            _log.warning("other transactions are in the way", duty="notes on handlers", error=str(error))
        self._progress.clear()

    def _write_progress(self) -> None:
        keys = list(self._progress)[:AT_ONCE]
        told = [self._progress.pop(key) for key in keys]
        if told:
            self._tolerantly(lambda tx: outcomes.progress(tx, told, self._node_id))

    def _write_seen(self) -> None:
        for name, seen in list(self._seen.items()):
            self._tolerantly(partial(_write_handler, seen=seen, node=self._node_name))
            del self._seen[name]

    def _tolerantly(self, work: Callable[[Tx], object]) -> None:
        try:
            self._store.run(work)
        except StoreRefused as error:
            _log.warning("the store refused a note on a running attempt or a handler", error=str(error))


def _write_handler(tx: Tx, seen: Seen, node: str) -> None:
    handlers.seen(tx, seen.handler, seen.signature, node)
