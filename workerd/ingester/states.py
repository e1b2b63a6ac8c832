"""What running attempts have saved, on its way to their rows."""

from __future__ import annotations

from collections.abc import Callable

from workerd import log
from workerd.errors import CommitUnknown, StoreAway, StoreBusy, StoreRefused
from workerd.ingester.connections import Connection
from workerd.ingester.pipeline import PipelineMode, WritePipeline
from workerd.job import AttemptRef
from workerd.messages import StateSaved, StateStored
from workerd.runtime.loop import Loop
from workerd.store import saved_states
from workerd.store.base import Store

WRITE_INTERVAL_S = 0.5
"""A node that dies loses at most what was saved in the last second, the commit included."""
WAITED_FOR_DELAY_S = 0.002
"""In which what other runs wait for arrives, to be committed together."""
RETRY_FOR_S = 0.5
"""Outcomes wait meanwhile."""
MAX_ROWS = 100
"""Of one transaction: 64 KiB each."""

_log = log.get_logger("ingester")


class StateWriter:
    """Keeps the newest state of each attempt until it is committed or the attempt is not this node's."""

    def __init__(self, loop: Loop, store: Store, node_id: bytes, pipeline: WritePipeline) -> None:
        self._loop = loop
        self._store = store
        self._node_id = node_id
        self._pipeline = pipeline
        self._unwritten: dict[AttemptRef, tuple[Connection, StateSaved]] = {}
        self._due = False
        self._soon = False

    def on_state_saved(self, connection: Connection, saved: StateSaved) -> None:
        """An attempt has saved something; StateStored answers it."""
        self._unwritten[saved.ref] = connection, saved
        if saved.wait and not self._soon:
            self._soon = True
            self._loop.call_later(WAITED_FOR_DELAY_S, self._on_soon)
        self._schedule()

    def _on_soon(self) -> None:
        self._soon = False
        self.write()

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_later(WRITE_INTERVAL_S, self._on_timer)

    def _on_timer(self) -> None:
        self._due = False
        self.write()

    def write(self) -> bool:
        """Write what waits, as far as the store and its locks allow; whether nothing waits any more."""
        while self._unwritten and self._pipeline.mode is not PipelineMode.AWAY:
            if not self._write_some():
                break
        if self._unwritten:
            self._schedule()
        return not self._unwritten

    def call_when_written(self, done: Callable[[], None]) -> None:
        """Call `done` once nothing waits: the states must be in the rows before the attempts are closed."""
        if self.write():
            done()
        else:
            self._loop.call_later(WRITE_INTERVAL_S, lambda: self.call_when_written(done))

    def _write_some(self) -> bool:
        """Write the oldest; false if nothing could be written now."""
        part = [saved for _, saved in list(self._unwritten.values())[:MAX_ROWS]]
        try:
            written = self._store.run(
                lambda tx: saved_states.write(tx, part, self._node_id), retry_for_s=RETRY_FOR_S
            )
        except (CommitUnknown, StoreBusy):
            return False  # written again: it is the same value
        except StoreAway as error:
            self._pipeline.store_lost(error)
            return False
        except StoreRefused as error:
            _log.warning("state.refused", error=str(error), count=len(part))
            written = saved_states.Written([], part)
        for saved in written.stored:
            self._answer(saved, ours=True)
        for saved in written.foreign:
            self._answer(saved, ours=False)
        return bool(written.stored or written.foreign)

    def _answer(self, saved: StateSaved, *, ours: bool) -> None:
        connection, _ = self._unwritten.pop(saved.ref)
        connection.send(StateStored(saved.id, saved.attempt, saved.number, ours))
