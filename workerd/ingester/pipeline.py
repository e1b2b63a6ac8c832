"""The write pipeline: received outcomes go to the store, or to the spool while it is unavailable."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from workerd import log
from workerd.errors import StoreAway, StoreBusy, StoreError
from workerd.ingester.pending import MAX_WEIGHT, PendingOutcomes, weight
from workerd.ingester.spool import Spool
from workerd.ingester.writer import Writer
from workerd.outcome import Outcome, without_log
from workerd.runtime.adaptive_size import SLOW_S, AdaptiveSize
from workerd.runtime.loop import Loop, Timer
from workerd.store.availability import StoreAvailability

MAX_ROWS_PER_APPEND = 2000
"""Outcomes that share one fsync of the spool."""
FULL_LINGER_ROWS = 10
"""Outcomes in the last batch that make the next one wait for the whole linger."""
MIN_WEIGHT = 16 * 1024
"""Bytes to which batches shrink."""
MAX_ROWS_BESIDE_REPLAY = 1000
"""Outcomes that may wait in memory for a replay to end, so that their pools do not wait for it."""
SPOOL_RETRY_DELAY_S = 0.5


_log = log.get_logger("ingester")


class PipelineMode(StrEnum):
    """Where outcomes go; `MOVES` says what may follow. A pipeline begins with AWAY: the spool goes first."""

    AWAY = "away"
    REPLAY = "replay"
    LIVE = "live"


MOVES: dict[PipelineMode, frozenset[PipelineMode]] = {
    PipelineMode.AWAY: frozenset({PipelineMode.REPLAY}),  # the store answers
    PipelineMode.REPLAY: frozenset({PipelineMode.LIVE, PipelineMode.AWAY}),  # spool empty; store unavailable
    PipelineMode.LIVE: frozenset({PipelineMode.AWAY}),
}


class WritePipeline:
    """Takes pending outcomes in order, makes them durable, and has them acknowledged (law 6).

    All outcomes reach the store in one line, spool before memory, so a barrier is a position in it.
    `max_rows`: of one transaction. `on_change` is called after every step: there may be room for more
    outcomes, and mode, trouble and the limit of a payload may have changed.

    reached
        Whether the store has answered once.
    trouble
        One sentence on an outage, empty without one.
    spooling_since
        Unix time since which something is only on disk, None if nothing is.
    """

    def __init__(
        self,
        loop: Loop,
        pending: PendingOutcomes,
        spool: Spool,
        writer: Writer,
        node_id: bytes,
        max_rows: int,
        linger_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._pending = pending
        self._spool = spool
        self._writer = writer
        self._node_id = node_id
        self._max_rows = max_rows
        # While a batch is written nothing else is read, and all of it is at stake.
        self._rows = AdaptiveSize(max_rows)
        self._weight = AdaptiveSize(MAX_WEIGHT, least=MIN_WEIGHT)
        self._linger_s = linger_s
        self._on_change = on_change
        self._availability = StoreAvailability("ingester", writer.store)
        self._former_rows = 0  # spooled by former processes: ahead of everything received
        self._barriers: list[tuple[int, Callable[[], None]]] = []
        self._timer: Timer | None = None
        self._step_due = False
        self._leaves_logs_out = False
        self._locked_due = False  # what waits for locks is tried again at a timer
        self._written_at = 0.0
        self.mode = PipelineMode.AWAY
        self.reached = False
        self.trouble = ""
        self.spooling_since: float | None = None

    def start(self) -> None:
        """Probe the store; the spool is open."""
        self._former_rows = self._spool.rows
        self._note_spool()
        self._probe()

    def outcomes_received(self) -> None:
        """Take what is pending at the end of this turn of the loop."""
        if not self._step_due:
            self._step_due = True
            self._loop.at_end_of_turn(self._step)

    def barrier(self, on_done: Callable[[], None]) -> None:
        """Call `on_done` once everything received so far is in the store, not only in the spool."""
        self._barriers.append((self._former_rows + self._pending.received, on_done))
        self._release_barriers()

    @property
    def idle(self) -> bool:
        """Whether everything received is in the store."""
        return not self._pending.rows and self._spool.empty and not self._writer.locked.rows

    def store_lost(self, error: StoreAway) -> None:
        """The store turned out to be unavailable."""
        if self.mode is PipelineMode.AWAY:
            return
        self._move(PipelineMode.AWAY)
        self._probe_later(error)
        self.outcomes_received()

    def check_server(self) -> None:
        """Ask the server whether it may be written: while nothing comes, no write would learn it."""
        if self.mode is not PipelineMode.LIVE:
            return
        try:
            self._writer.store.check_server()
        except StoreAway as error:
            self.store_lost(error)

    # -- steps

    def _step(self) -> None:
        self._step_due = False
        match self.mode:
            case PipelineMode.LIVE:
                self._write_pending()
            case PipelineMode.REPLAY:
                self._replay()
            case PipelineMode.AWAY:
                self._spool_pending(self._pending.rows)
        self._note_spool()
        self._release_barriers()
        self._retry_locked_later()
        self._report()

    def _retry_locked_later(self) -> None:
        if self._writer.locked.rows and not self._locked_due:
            self._locked_due = True
            self._loop.call_later(self._writer.locked.pause(), self._retry_locked)

    def _retry_locked(self) -> None:
        """Try outcomes again whose rows were locked; all others are ahead of them."""
        self._locked_due = False
        if self.mode is not PipelineMode.AWAY:
            error = self._writer.retry_locked(self._rows.value)
            if error is not None:
                self.store_lost(error)
        self._retry_locked_later()
        self._report()

    def _step_later(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.outcomes_received()

    def _write_pending(self) -> None:
        """Write a batch, unless enough outcomes may join it within the linger.

        The first one after a pause never waits, nor do those that come one by one: a caller may be waiting,
        and few would join. The fuller the last batch was, the longer the next is held open.
        """
        rows = self._pending.rows
        if not rows:
            return
        lingers = min(1.0, (self._writer.last_rows - 1) / FULL_LINGER_ROWS)
        wait_s = self._written_at + self._linger_s * lingers - time.monotonic()
        if wait_s > 0 and rows < self._rows.value and self._pending.weight < self._max_weight:
            if self._timer is None:
                self._step_later(wait_s)
            return
        written, error = self._write(self._pending.peek(self._rows.value, self._max_weight))
        self._pending.acknowledge(written)
        if error is not None:
            self.store_lost(error)
            return
        if self._availability.logged:
            self._availability.restored()
        if self._pending.rows:
            self._step_later(0.0)

    def _replay(self) -> None:
        """Write a batch from the spool; what comes meanwhile waits, and is spooled if it is much."""
        batch = self._spool.peek(self._rows.value, self._max_weight)
        if batch:
            written, error = self._write(batch)
            self._spool.advance(written)
            if written:
                self._availability.restored()
            if error is not None:
                self.store_lost(error)
                return
        if self._spool.empty:
            self._move(PipelineMode.LIVE)
            self._availability.restored()
        elif self._pending.rows > MAX_ROWS_BESIDE_REPLAY and self._spool.rows > 4 * self._max_rows:
            # Half of what was replayed: the spool becomes shorter, however much comes.
            self._spool_pending(len(batch) // 2)
        self._step_later(0.0)

    def _write(self, batch: list[Outcome]) -> tuple[int, StoreAway | None]:
        began = time.monotonic()
        written, error = self._writer.write_batch(batch)
        self._written_at = time.monotonic()
        seconds = self._written_at - began
        if written == len(batch):
            self._rows.note(seconds, len(batch))
            if seconds > SLOW_S or self._weight.is_reduced:  # else it changes nothing
                self._weight.note(seconds, sum(map(weight, batch)))
        elif error is None or not error.answered or isinstance(error, StoreBusy):
            # It may be too much for the line, or for the time limit of a statement.
            self._rows.halve(len(batch))
            self._weight.halve(sum(map(weight, batch)))
        return written, error

    @property
    def _max_weight(self) -> int:
        """Of the next transaction."""
        return min(self._weight.value, self._writer.max_batch_bytes)

    def _spool_pending(self, max_rows: int) -> None:
        """Move up to `max_rows` pending outcomes to the spool, with one fsync for many."""
        if self._spool.trouble and self._timer is not None:
            return  # tried again when the timer fires
        while max_rows > 0 and self._pending.rows:
            batch = self._pending.peek(min(max_rows, MAX_ROWS_PER_APPEND), self._writer.max_batch_bytes)
            appended = self._spool.append([self._to_spool(outcome) for outcome in batch])
            self._pending.acknowledge(appended)
            max_rows -= appended
            if appended < len(batch):
                self._step_later(SPOOL_RETRY_DELAY_S)
                break

    def _to_spool(self, outcome: Outcome) -> Outcome:
        """With its incarnation, for another one may replay it; without its log if the spool is half full."""
        if outcome.log is not None and self._spool.half_full:
            if not self._leaves_logs_out:
                self._leaves_logs_out = True
                _log.warning("logs.left_out", spool_bytes=self._spool.bytes)
            outcome = without_log(outcome, "the store was away and the spool more than half full")
        if outcome.trace is not None and self._spool.half_full:
            outcome = msgspec.structs.replace(outcome, trace=None)
        if outcome.node_id is not None:
            return outcome
        return msgspec.structs.replace(outcome, node_id=self._node_id)

    def _note_spool(self) -> None:
        if self._spool.empty:
            self.spooling_since = None
            self._leaves_logs_out = False
        elif self.spooling_since is None:
            self.spooling_since = time.time()

    # -- the store's availability

    def _probe(self) -> None:
        try:
            self._writer.probe()
        except StoreError as error:
            self._probe_later(error)
            return
        # Not restored yet: a cluster without its majority answers every probe and commits nothing.
        self._availability.reads_answer()
        self.reached = True
        self._move(PipelineMode.REPLAY)
        self.outcomes_received()

    def _probe_later(self, error: StoreError) -> None:
        self._availability.lost(error)
        self._loop.call_later(self._availability.probe_delay(), self._probe)
        self._report()

    def _move(self, mode: PipelineMode) -> None:
        assert mode in MOVES[self.mode], f"{self.mode} -> {mode}"
        self.mode = mode

    def _report(self) -> None:
        self.trouble = ""
        error = self._availability.error
        if error is not None and self._availability.logged:
            answers = isinstance(error, StoreAway) and error.answered
            what = "takes no outcomes" if answers else "is unavailable"
            self.trouble = f"The store {what} ({error}); outcomes go to the spool"
            full = self._spool.trouble
            self.trouble += f", but {full}: nothing more is accepted." if full else "."
        self._on_change()

    # -- barriers

    def _release_barriers(self) -> None:
        if not self._barriers:
            return
        stored = self._former_rows + self._pending.received - self._pending.rows - self._spool.rows
        due = [on_done for position, on_done in self._barriers if position <= stored]
        self._barriers = [barrier for barrier in self._barriers if barrier[0] > stored]
        for on_done in due:
            on_done()
