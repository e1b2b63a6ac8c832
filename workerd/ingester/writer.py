"""Writes one batch of outcomes to the store: as a whole if possible, and never stopped by one of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from workerd import log
from workerd.clock import SECOND
from workerd.errors import CommitUnknown, StoreAway, StoreError, StoreRefused, UnreadableRow
from workerd.ingester.dead_letters import DeadLetters
from workerd.ingester.ended import EndedAttempts
from workerd.ingester.pending import USUAL_PACKET_BYTES, weight
from workerd.ingester.stats import IngestStats
from workerd.job import AttemptRef, id_text
from workerd.outcome import Outcome, refused
from workerd.store import intervals, retries, workflows, write_probe
from workerd.store import outcomes as store_outcomes
from workerd.store.base import Store, Tx
from workerd.store.outcomes import ClosedBatch

MAX_TURN_S = 1.0
"""After this a batch that is taken apart goes on in the next turn of the loop."""
LARGE_OUTCOME_BYTES = 256 * 1024
MAX_BROKEN_CONNECTIONS = 5
"""A large outcome, alone in its transaction, that broke the connection so often is not sent again."""

_log = log.get_logger("ingester")


FollowUp = Callable[[Tx, ClosedBatch], None]

FOLLOW_UPS: tuple[FollowUp, ...] = (retries.insert_next, intervals.insert_next_runs, workflows.advance)
"""What follows from attempts that have ended, in the transaction that ends them, in this order."""
FOLLOW_UPS_WITHOUT_STEPS: tuple[FollowUp, ...] = (
    retries.insert_next,
    intervals.insert_next_runs,
    workflows.record,
)
"""The same where further steps of requests are left to the dispatcher's sweep."""


def close(
    tx: Tx, outcomes: Sequence[Outcome], node_id: bytes, follow_ups: Sequence[FollowUp] = FOLLOW_UPS
) -> ClosedBatch:
    """Close attempts of `node_id` and do what follows. Raises StoreRefused if one cannot be stored."""
    batch = store_outcomes.close(tx, outcomes, node_id)
    for follow_up in follow_ups:
        follow_up(tx, batch)
    return batch


class Writer:
    """Closes attempts in the store and counts those whose closing took effect.

    `max_payload`: bytes of one payload that the store takes, as far as known. `advance_workflows` false
    leaves further steps of requests to the dispatcher's sweep. `on_claimable` is called when jobs became
    claimable, `on_scheduled` with the store time at which the first scheduled one is due if that is within
    `poll_s`: the dispatcher's polls find later ones in time.

    `ended`: the attempts whose outcomes were written.
    """

    def __init__(
        self,
        store: Store,
        node_id: bytes,
        max_payload: int,
        dead_letters: Path,
        stats: IngestStats,
        *,
        advance_workflows: bool,
        on_claimable: Callable[[], object],
        on_scheduled: Callable[[int], object],
        poll_s: float,
    ) -> None:
        self._store = store
        self._follow_ups = FOLLOW_UPS if advance_workflows else FOLLOW_UPS_WITHOUT_STEPS
        self._on_claimable = on_claimable
        self._on_scheduled = on_scheduled
        self._poll_us = int(poll_s * SECOND)
        self._node_id = node_id
        self._configured_max_payload = max_payload
        self._dead_letters = DeadLetters(dead_letters, node_id)
        self._stats = stats
        self._max_packet: int | None = None
        self._unknown_commits: dict[AttemptRef, list[int]] = {}  # the `ingested_at` of each
        self._breaking: tuple[AttemptRef | None, int] = None, 0  # and how often it broke the connection
        self.ended = EndedAttempts()
        self.max_payload = max_payload
        self.refused = 0
        self.rows = 0
        self.batches = 0
        self.last_rows = 0
        self.last_commit_ms = 0.0

    @property
    def store(self) -> Store:
        return self._store

    @property
    def set_aside(self) -> int:
        return self._dead_letters.count

    @property
    def max_batch_bytes(self) -> int:
        """Bytes of SQL of one batch: a quarter of what the server takes at once (law 7)."""
        return (self._max_packet or USUAL_PACKET_BYTES) // 4

    def probe(self) -> None:
        """See that the store can be written, and how much it takes. Raises StoreAway, WrongVersion."""
        self._store.check_server()
        self._store.check_version()
        self._store.run(write_probe.probe)
        self._max_packet = self._store.max_packet
        limit = self._configured_max_payload
        if self._max_packet is not None:
            limit = max(1024, min(limit, self._max_packet // 2 - 64 * 1024))
        self.max_payload = limit

    def write_batch(self, outcomes: Sequence[Outcome]) -> tuple[int, StoreAway | None]:
        """Record outcomes in order; returns how many from the front are done, and the error of the next.

        Done are those recorded, recorded as `refused`, without effect because the attempt had ended already,
        or set aside as dead letters. Less than all without an error: MAX_TURN_S was over.
        """
        done = 0
        end = time.monotonic() + MAX_TURN_S
        parts = [[self._fitting(outcome) for outcome in outcomes]]
        while parts and not (done and time.monotonic() > end):
            part = parts.pop()
            try:
                self._write_part(part)
            except StoreRefused as error:
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                    continue
                try:
                    self._refuse(part[0], str(error))
                except StoreAway as away:
                    return done, away
            except StoreAway as error:
                if not self._breaks_connections(part):
                    return done, error
                try:
                    self._refuse(part[0], f"the store's connection breaks whenever it is sent: {error}")
                except StoreAway as away:
                    return done, away
            done += len(part)
        return done, None

    def _fitting(self, outcome: Outcome) -> Outcome:
        """The outcome, or its refusal if its payload is larger than the store takes."""
        payload = outcome.payload
        if payload is None or len(payload) <= self.max_payload:
            return outcome
        self.refused += 1
        error = f"the payload has {len(payload)} bytes, at most {self.max_payload} are taken"
        return refused(outcome, f"{error}; return less, or a reference to where it is kept")

    def _breaks_connections(self, part: list[Outcome]) -> bool:
        """Whether this is one large outcome that breaks the connection again and again (law 7).

        A proxy may take less than the server says. The refusal is small: if the store really is
        unavailable, that fails too, and the outcome is kept.
        """
        if len(part) > 1 or weight(part[0]) < LARGE_OUTCOME_BYTES:
            return False
        ref, count = self._breaking
        self._breaking = part[0].ref, count + 1 if ref == part[0].ref else 1
        return self._breaking[1] >= MAX_BROKEN_CONNECTIONS

    def _write_part(self, part: list[Outcome]) -> None:
        """Record outcomes in one transaction. Raises StoreError."""
        began = time.monotonic()
        effective = self._close(part)
        seconds = time.monotonic() - began
        self.ended.add(part)
        self.rows += len(part)
        self.batches += 1
        self.last_rows = len(part)
        self.last_commit_ms = round(seconds * 1000, 3)
        self._stats.batch(len(part), seconds)
        if len(effective) == len(part):
            self._stats.recorded(part)
        else:
            self._stats.recorded([outcome for outcome in part if outcome.ref in effective])

    def _close(self, part: list[Outcome]) -> set[AttemptRef]:
        """The attempts whose closing took effect, now or by an earlier COMMIT that had no answer."""
        now = 0

        def work(tx: Tx) -> ClosedBatch:
            nonlocal now
            now = tx.now
            return close(tx, part, self._node_id, self._follow_ups)

        try:
            batch = self._store.run(work)
        except CommitUnknown:
            for outcome in part:
                self._unknown_commits.setdefault(outcome.ref, []).append(now)
            raise
        except UnreadableRow as error:
            raise StoreRefused(str(error)) from None
        except StoreError:
            raise
        except Exception as error:
            # A bug: but it must cost this outcome only. The process would end, be sent the same again by
            # the pool, and end again.
            _log.exception("outcome.write_failed")
            raise StoreRefused(f"bug in workerd: {type(error).__name__}: {error}") from error
        if batch.woken:
            self._on_claimable()
        effective = batch.refs
        delays = (delay for o in part if o.ref in effective for delay in _delays_us(o))
        delay_us = min(delays, default=self._poll_us)
        if delay_us < self._poll_us:
            self._on_scheduled(now + delay_us)
        if self._unknown_commits:
            effective |= self._settle_unknown([outcome.ref for outcome in part])
        return effective

    def _settle_unknown(self, refs: list[AttemptRef]) -> set[AttemptRef]:
        """Of these attempts, those closed by a COMMIT without an answer: they carry its `ingested_at`."""
        by_moment: dict[int, list[AttemptRef]] = {}
        for ref in refs:
            for moment in self._unknown_commits.pop(ref, ()):
                by_moment.setdefault(moment, []).append(ref)
        found: set[AttemptRef] = set()
        with contextlib.suppress(StoreError):  # only the metrics need it
            for moment, unknown in by_moment.items():
                found |= self._store.read(partial(store_outcomes.ingested, keys=unknown, moment=moment))
        return found

    def _refuse(self, outcome: Outcome, error: str) -> None:
        """End one attempt as `refused`, with as much as the store takes. Raises StoreAway."""
        for form in (refused(outcome, error), refused(outcome, error, bare=True)):
            try:
                self._write_part([form])
            except StoreRefused as refusal:
                last_error = str(refusal)
                continue
            self.refused += 1
            _log.warning(
                "outcome.refused",
                job=id_text(outcome.id), attempt=outcome.attempt, handler=outcome.handler, error=error,
            )  # fmt: skip
            return
        self._dead_letters.add(outcome, last_error)


def _delays_us(outcome: Outcome) -> Iterator[int]:
    """From the closing until what follows from an outcome is due, if it is not at once."""
    if outcome.next is not None and outcome.next.delay_us > 0:
        yield outcome.next.delay_us
    if outcome.next_run_us is not None:
        yield outcome.next_run_us
