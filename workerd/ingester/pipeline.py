"""The write pipeline: received outcomes go to the store, or to the spool while it is away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from workerd import log
from workerd.errors import StoreAway, StoreError
from workerd.ingester.pending import PendingOutcomes
from workerd.ingester.spool import Spool
from workerd.ingester.writer import Writer
from workerd.outcome import Outcome
from workerd.runtime.loop import Loop, Timer

FIRST_PROBE = 0.1
LAST_PROBE = 0.5
"""Seconds between two looks whether the store is back, growing from the first to the last."""
GRACE = 1.0
"""Seconds after the start in which nobody is told that the store does not answer yet."""
SPOOL_AT_ONCE = 2000
"""Outcomes that share one fsync."""
WORTHWHILE = 10
"""Outcomes in the last batch that make the next wait for the whole linger."""
STREAM = 50
"""Outcomes in the last batch that make a stream: nobody waits for one of them, and a transaction costs the
server as much as thirty rows of it, so the next batch may take STREAM_LINGERS lingers to fill."""
STREAM_LINGERS = 4
PATIENT = 1000
"""Outcomes that may wait in memory for a replay to end, so that their pools do not wait for it."""
FULL_PAUSE = 0.5
"""Seconds after which a spool that could not be written is tried again."""

_log = log.get_logger("ingester")


class PipelineMode(StrEnum):
    """What is done with outcomes.

    AWAY -> REPLAY when the store answers; REPLAY -> LIVE when the spool is empty; either -> AWAY when
    the store does not answer. It begins with AWAY: what a former process left goes first.
    """

    AWAY = "away"
    REPLAY = "replay"
    LIVE = "live"


class WritePipeline:
    """Takes from the backlog, in order, and makes durable.

    Everything passes store-wards in one line (spool, then backlog), so `barrier` is a place in it.
    `reached`: the store has answered once. `on_change` is called whenever something was done: the backlog
    may have room again, and mode, trouble and the limit of a payload may be others.
    """

    def __init__(
        self,
        loop: Loop,
        backlog: PendingOutcomes,
        spool: Spool,
        writer: Writer,
        node_id: bytes,
        rows: int,
        linger: float,
        on_change: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._backlog = backlog
        self._spool = spool
        self._writer = writer
        self._node_id = node_id
        self._most_rows = rows
        self._rows = rows
        self._linger = linger
        self._on_change = on_change
        self._former = 0  # rows of former processes, which stand in the line before all that was received
        self._barriers: list[tuple[int, Callable[[], None]]] = []
        self._timer: Timer | None = None
        self._turn_due = False
        self._last_write = 0.0
        self._pause = FIRST_PROBE
        self._said_away = False
        self._began = time.monotonic()
        self.reached = False
        self.mode = PipelineMode.AWAY
        self._why = "it was not asked yet"
        self.since = time.time()
        self.trouble = ""

    # -- asking for work to be done

    def start(self) -> None:
        """Look for the store now; the spool is open."""
        self._former = self._spool.rows
        self._probe()

    def arrived(self) -> None:
        """Something came into the backlog: see to it at the end of this turn of the loop."""
        if not self._turn_due:
            self._turn_due = True
            self._loop.at_end_of_turn(self._work)

    def barrier(self, done: Callable[[], None]) -> None:
        """Call `done` once everything received so far is in the store, not only in the spool."""
        self._barriers.append((self._former + self._backlog.received, done))
        self._release_barriers()

    @property
    def spooling(self) -> bool:
        """Whether something that was received is on disk only."""
        return not self._spool.empty

    @property
    def idle(self) -> bool:
        """Whether all that was received is in the store."""
        return not self._backlog.rows and self._spool.empty

    def _again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self.arrived()

    # -- doing it

    def _work(self) -> None:
        self._turn_due = False
        match self.mode:
            case PipelineMode.LIVE:
                self._live()
            case PipelineMode.REPLAY:
                self._replay()
            case PipelineMode.AWAY:
                self._keep(self._backlog.rows)
        self._release_barriers()
        self._tell()

    def _live(self) -> None:
        """Write a batch, unless enough may join it within the linger.

        The first after a rest never waits, nor does what comes one by one: somebody may be waiting for it,
        and little would join. The fuller the last batch was, the longer the next is held open.
        """
        rows = self._backlog.rows
        if not rows:
            return
        last = self._writer.last_rows
        linger = self._linger * (STREAM_LINGERS if last >= STREAM else min(1.0, (last - 1) / WORTHWHILE))
        wait = self._last_write + linger - time.monotonic()
        if wait > 0 and rows < self._rows and self._backlog.weight < self._writer.most:
            if self._timer is None:
                self._again(wait)
            return
        done, fault = self._write(self._backlog.peek(self._rows, self._writer.most))
        self._backlog.settle(done)
        if fault is not None:
            self.gone(fault)
        elif self._backlog.rows:
            self._again(0.0)

    def _replay(self) -> None:
        """Write a batch from the spool; what came meanwhile waits, and is spooled if it is much."""
        batch = self._spool.peek(self._rows, self._writer.most)
        if batch:
            done, fault = self._write(batch)
            self._spool.advance(done)
            if done:
                self._back()
            if fault is not None:
                self.gone(fault)
                return
        if self._spool.empty:
            self._become(PipelineMode.LIVE)
        elif self._backlog.rows > PATIENT and self._spool.rows > 4 * self._most_rows:
            # Half of what was replayed: the spool becomes shorter, however much comes.
            self._keep(len(batch) // 2)
        self._again(0.0)

    def _write(self, batch: list[Outcome]) -> tuple[int, StoreAway | None]:
        done, fault = self._writer.write(batch)
        self._last_write = time.monotonic()
        if done == len(batch):
            self._rows = min(self._most_rows, self._rows * 2)
        else:
            # It may have been too much for the time limits.
            self._rows = max(1, self._rows // 2)
        if fault is None:
            self._pause = FIRST_PROBE
        return done, fault

    def _keep(self, most: int) -> None:
        """Move up to `most` outcomes from the backlog to the spool, with one fsync for many."""
        if self._spool.trouble and self._timer is not None:
            return  # it is tried again when the timer says so
        while most > 0 and self._backlog.rows:
            batch = self._backlog.peek(min(most, SPOOL_AT_ONCE), self._writer.most)
            taken = self._spool.append([self._owned(outcome) for outcome in batch])
            self._backlog.settle(taken)
            most -= taken
            if taken < len(batch):
                self._again(FULL_PAUSE)
                break

    def _owned(self, outcome: Outcome) -> Outcome:
        """The outcome with its incarnation in it: another may be the one that replays it."""
        if outcome.node_id is not None:
            return outcome
        return msgspec.structs.replace(outcome, node_id=self._node_id)

    # -- the store comes and goes

    def _probe(self) -> None:
        try:
            self._writer.look()
        except StoreError as error:
            self._away(str(error))
            return
        self.reached = True
        self._become(PipelineMode.REPLAY)
        self.arrived()

    def gone(self, fault: StoreAway) -> None:
        """Somebody noticed that the store does not answer."""
        if self.mode is PipelineMode.AWAY:
            return
        self._become(PipelineMode.AWAY)
        self._away(str(fault))
        self.arrived()

    def _away(self, why: str) -> None:
        """Look again after a pause that grows, spread so that nodes do not come back all at once."""
        # A store that is being started or migrated beside us is not worth a warning.
        new = not self.reached and time.monotonic() < self._began + GRACE
        if not self._said_away and not new:
            self._said_away = True
            self.since = time.time()
            _log.warning("the store is away: outcomes go to the spool until it is back", error=why)
        self._why = why
        self._loop.call_later(self._pause * random.uniform(0.5, 1.0), self._probe)
        self._pause = min(LAST_PROBE, self._pause * 2)
        self._tell()

    def _back(self) -> None:
        if self._said_away:
            self._said_away = False
            _log.info("the store is back", spooled=self._spool.rows, away=f"{time.time() - self.since:.1f} s")

    def _become(self, mode: PipelineMode) -> None:
        self.mode = mode
        if mode is PipelineMode.LIVE:
            self._back()

    def _tell(self) -> None:
        trouble = ""
        if self._said_away:
            trouble = f"The store is away ({self._why}); outcomes go to the spool"
            full = self._spool.trouble
            trouble += f", but {full}: nothing more is accepted." if full else "."
        self.trouble = trouble
        self._on_change()

    # -- barriers

    def _release_barriers(self) -> None:
        if not self._barriers:
            return
        recorded = self._former + self._backlog.received - self._backlog.rows - self._spool.rows
        due = [done for mark, done in self._barriers if mark <= recorded]
        self._barriers = [barrier for barrier in self._barriers if barrier[0] > recorded]
        for done in due:
            done()
