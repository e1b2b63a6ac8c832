"""Writes one batch of outcomes to the store: as a whole if possible, and never stopped by one of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from workerd import log
from workerd.clock import SECOND
from workerd.errors import (
    CommitUnknown,
    StoreAway,
    StoreBusy,
    StoreError,
    StoreRefused,
    UnreadableRow,
)
from workerd.ingester.dead_letters import DeadLetters
from workerd.ingester.doubts import Doubt, Doubts
from workerd.ingester.ended import EndedAttempts
from workerd.ingester.locked import LockedOutcomes
from workerd.ingester.pending import USUAL_PACKET_BYTES, weight
from workerd.ingester.stats import IngestStats
from workerd.ingester.throughput import RecentJobs
from workerd.job import AttemptRef, id_text
from workerd.outcome import Outcome, refused, without_log
from workerd.store import duplicates, intervals, logs, retries, saved_states, workflows, write_probe
from workerd.store import errors as store_errors
from workerd.store import outcomes as store_outcomes
from workerd.store.base import Store, Tx
from workerd.store.outcomes import ClosedBatch

if TYPE_CHECKING:
    from workerd.tracing.export import SpanExport

MAX_TURN_S = 1.0
"""After this, a batch that is being split continues in the next turn of the loop."""
LARGE_OUTCOME_BYTES = 256 * 1024
RETRY_FOR_S = 0.5
"""Shorter than one lock wait, so that none is repeated: a lock wait blocks the whole pipeline."""
CAREFUL_S = 5.0
"""How long after a lock wait locked rows are looked for first, and left out."""
MAX_BROKEN_CONNECTIONS = 5
"""A large outcome, alone in its transaction, that broke the connection so often is not sent again."""

_log = log.get_logger("ingester")


FollowUp = Callable[[Tx, ClosedBatch], None]


def _follow_ups(of_requests: FollowUp) -> tuple[FollowUp, ...]:
    return (
        saved_states.settle,
        store_outcomes.free_limits,
        retries.insert_next,
        duplicates.release_followers,
        intervals.insert_next_runs,
        of_requests,
        logs.insert,
        store_errors.count,  # last: its rows are those that most transactions share
    )


FOLLOW_UPS = _follow_ups(workflows.advance)
"""What follows from attempts that have ended, in the transaction that ends them, in this order."""
FOLLOW_UPS_WITHOUT_STEPS = _follow_ups(workflows.record)
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
    claimable, `on_freed` with the limits of which something was given back, `on_scheduled` with the store
    time at which the first scheduled one is due if that is within `poll_s`: the dispatcher's polls find later
    ones in time.

    ended
        The attempts whose outcomes were written, or wait for a lock.
    locked
        Outcomes that wait for a lock beside the others.
    recent
        How many jobs came and ended within the last minute.
    recorded
        Outcomes that took effect.
    """

    def __init__(
        self,
        store: Store,
        node_id: bytes,
        max_payload: int,
        dead_letters: Path,
        locked: LockedOutcomes,
        stats: IngestStats,
        *,
        advance_workflows: bool,
        webhooks: FollowUp | None = None,
        spans: SpanExport | None = None,
        on_claimable: Callable[[], object],
        on_freed: Callable[[Collection[str]], object],
        on_scheduled: Callable[[int], object],
        poll_s: float,
    ) -> None:
        self._store = store
        self._follow_ups = FOLLOW_UPS if advance_workflows else FOLLOW_UPS_WITHOUT_STEPS
        if webhooks is not None:  # last: they send what the others found
            self._follow_ups = (*self._follow_ups, webhooks)
        self._spans = spans
        self._on_claimable = on_claimable
        self._on_freed = on_freed
        self._on_scheduled = on_scheduled
        self._poll_us = int(poll_s * SECOND)
        self._node_id = node_id
        self._configured_max_payload = max_payload
        self._dead_letters = DeadLetters(dead_letters, node_id)
        self.locked = locked
        self._careful_until = 0.0
        self._looked_for_locks = False
        self._stats = stats
        self.recent = RecentJobs()
        self._max_packet: int | None = None
        self._unknown_commits: dict[AttemptRef, list[int]] = {}  # the `ingested_at` of each
        self._breaking: tuple[AttemptRef | None, int] = None, 0  # and how often it broke the connection
        self.ended = EndedAttempts()
        self.max_payload = max_payload
        self.refused = 0
        self.rows = 0
        self.recorded = 0
        self.batches = 0
        self.last_rows = 0
        self.last_commit_ms = 0.0

    @property
    def store(self) -> Store:
        return self._store

    @property
    def set_aside(self) -> int:
        return len(self._dead_letters.refs())

    @property
    def max_batch_bytes(self) -> int:
        """Bytes of SQL of one batch: a quarter of what the server takes at once (law 7)."""
        return (self._max_packet or USUAL_PACKET_BYTES) // 4

    def probe(self) -> None:
        """Check that the store can be written, and how much it takes. Raises StoreAway, WrongVersion."""
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
        durable in `locked`, or set aside as dead letters. Less than all without an error: the turn was over.
        """
        behind, aside = self.locked.jobs, self._dead_letters.refs()
        ready = outcomes
        if behind or aside:
            # What is said later of an attempt whose end is not recorded yet must not take its place.
            ready = [o for o in outcomes if o.id not in behind and o.ref not in aside]
        count, locked, error = self._record(ready)
        done = len(outcomes) if count == len(ready) else outcomes.index(ready[count])
        waiting = locked + [outcome for outcome in outcomes[:done] if outcome.id in behind]
        if waiting:
            try:
                self.locked.add(waiting)
            except StoreAway as away:
                jobs = {outcome.id for outcome in waiting}
                return next(n for n, outcome in enumerate(outcomes) if outcome.id in jobs), away
        return done, error

    def retry_locked(self, rows: int) -> StoreAway | None:
        """Record what is no longer locked, at most `rows` outcomes; returns the error that ended it."""
        batch = self.locked.oldest(rows, self.max_batch_bytes)
        done, locked, error = self._record(batch)
        self.locked.tried(batch[:done], locked)
        return error

    def _record(self, outcomes: Sequence[Outcome]) -> tuple[int, list[Outcome], StoreAway | None]:
        """How many from the front are done, which of these have to wait for a lock, the error of the next."""
        done = 0
        end = time.monotonic() + MAX_TURN_S
        parts = [[self._fitting(outcome) for outcome in outcomes]]
        locked: list[Outcome] = []
        doubts = Doubts(lambda: self.recorded)
        error: StoreAway | None = None
        while parts and not doubts.too_many and not (done and time.monotonic() > end):
            part = parts.pop()
            careful = self._careful
            try:
                locked += self._write_part(part, careful=careful)
            except StoreRefused as refusal:
                if len(part) > 1:
                    parts += _halves(part)
                    continue
                doubts.add(done, part[0], str(refusal))
            except StoreBusy as busy:
                if not careful:
                    self._careful_until = time.monotonic() + CAREFUL_S
                    parts.append(part)
                    continue
                if not self._looked_for_locks:  # a lock on the whole table
                    error = busy
                    break
                if len(part) > 1:
                    parts += _halves(part)
                    continue
                locked += part
            except StoreAway as away:
                if not self._breaks_connections(part):
                    error = away
                    break
                broken = f"the store's connection breaks whenever it is sent: {away}"
                doubts.add(done, part[0], broken, send_again=False)
            done += len(part)
        return self._resolved(outcomes, done, locked, doubts, error)

    def _resolved(
        self,
        outcomes: Sequence[Outcome],
        done: int,
        locked: list[Outcome],
        doubts: Doubts,
        error: StoreAway | None,
    ) -> tuple[int, list[Outcome], StoreAway | None]:
        """Refuse what is refused again; nothing is an outcome's fault that the store does to others too."""
        for doubt in doubts.found:
            try:
                locked += self._write_or_refuse(doubt, others_recorded=self.recorded > doubt.recorded)
            except StoreAway as away:
                done, error = doubt.position, away
                break
        jobs = {outcome.id for outcome in outcomes[:done]}
        return done, [outcome for outcome in locked if outcome.id in jobs], error

    def _fitting(self, outcome: Outcome) -> Outcome:
        """The outcome, or its refusal if its payload is larger than the store takes."""
        if outcome.log is not None and len(outcome.log.encode()) > self.max_batch_bytes:
            outcome = without_log(outcome, "it is larger than the store takes")
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

    def _write_part(self, part: list[Outcome], *, careful: bool) -> list[Outcome]:
        """Record outcomes in one transaction; returns those that wait for a lock. Raises StoreError."""
        began = time.monotonic()
        effective, locked, now = self._close(part, careful)
        seconds = time.monotonic() - began
        self.ended.add(part)
        written = len(part) - len(locked)
        if not written:
            return locked
        self.rows += written
        self.recorded += len(effective)
        self.batches += 1
        self.last_rows = written
        self.last_commit_ms = round(seconds * 1000, 3)
        self._stats.batch(written, seconds)
        recorded = part
        if len(effective) != len(part):
            recorded = [outcome for outcome in part if outcome.ref in effective]
        self._stats.recorded(recorded)
        self.recent.recorded(recorded, now)
        if self._spans is not None:
            self._spans.recorded(recorded, now, self._metas_of)
        return locked

    def _metas_of(self, refs: Sequence[AttemptRef]) -> dict[AttemptRef, bytes | None]:
        """The `meta` of these attempts; empty if the store does not answer."""
        with contextlib.suppress(StoreError):
            return self._store.read(lambda tx: store_outcomes.metas(tx, refs))
        return {}

    @property
    def _careful(self) -> bool:
        """Whether rows were locked recently: a lock wait blocks the whole pipeline."""
        return bool(self.locked.rows) or time.monotonic() < self._careful_until

    def _close(self, part: list[Outcome], careful: bool) -> tuple[set[AttemptRef], list[Outcome], int]:
        """The attempts whose closing took effect, now or by an earlier COMMIT that had no answer.

        `careful`: outcomes with a locked row are left out, and returned too; and the store time of it.
        """
        now = 0
        ready = part
        self._looked_for_locks = False

        def work(tx: Tx) -> ClosedBatch:
            nonlocal now, ready
            now = tx.now
            if careful:
                ready = store_errors.lockable(tx, store_outcomes.lockable(tx, part))
                self._looked_for_locks = True
            return close(tx, ready, self._node_id, self._follow_ups)

        try:
            batch = self._store.run(work, retry_for_s=RETRY_FOR_S)
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
        effective = batch.refs
        self._announce(batch, effective, part, now)
        self._stats.new_errors(handler for _, handler in batch.new_errors)
        if self._unknown_commits:
            effective |= self._settle_unknown([outcome.ref for outcome in ready])
        if len(ready) == len(part):
            return effective, [], now
        written = {outcome.id for outcome in ready}
        return effective, [outcome for outcome in part if outcome.id not in written], now

    def _announce(
        self, batch: ClosedBatch, effective: set[AttemptRef], part: list[Outcome], now: int
    ) -> None:
        """Wake whoever can claim what follows; `effective` are the attempts of the batch."""
        if batch.woken:
            self._on_claimable()
        if batch.freed:
            self._on_freed(batch.freed)
        delays = (delay for o in part for delay in _delays_us(o) if o.ref in effective)
        delay_us = min(delays, default=self._poll_us)
        if delay_us < self._poll_us:
            self._on_scheduled(now + delay_us)

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

    def _write_or_refuse(self, doubt: Doubt, *, others_recorded: bool) -> list[Outcome]:
        """Record an outcome once more, else its refusal with as much as the store takes.

        Returns it if it waits for a lock. Raises StoreAway if even its bare refusal is refused, unless others
        were recorded meanwhile: then it is set aside.
        """
        outcome, error = doubt.outcome, doubt.error
        bare = refused(outcome, error, bare=True)
        if doubt.send_again and not others_recorded and (last_error := self._refusal(bare)):
            raise StoreAway(f"the store refuses every outcome: {last_error}", answered=True)
        # Once more after the store took anything at all: a fault of its own may just have gone.
        forms = [outcome] if doubt.send_again else []
        for form in (*forms, refused(outcome, error), bare):
            try:
                locked = self._write_part([form], careful=self._careful)
            except StoreRefused as refusal:
                last_error = str(refusal)
                continue
            except StoreBusy:
                return [outcome]
            if form is not outcome and not locked:
                self.refused += 1
                _log.warning(
                    "outcome.refused",
                    job=id_text(outcome.id), attempt=outcome.attempt, handler=outcome.handler, error=error,
                )  # fmt: skip
            return locked
        if not others_recorded:
            raise StoreAway(f"the store refuses every outcome: {last_error}", answered=True)
        self._dead_letters.add(outcome, last_error)
        return []

    def _refusal(self, outcome: Outcome) -> str:
        """Why the store would refuse this outcome now, empty if it would take it; nothing is changed."""

        def work(tx: Tx) -> None:
            close(tx, [outcome], self._node_id, self._follow_ups)
            raise _Undone

        try:
            self._store.run(work, retry_for_s=RETRY_FOR_S)
        except _Undone:
            return ""
        except (StoreRefused, UnreadableRow) as refusal:
            return str(refusal)
        except StoreBusy:
            pass  # locked, which is no refusal
        return ""


class _Undone(Exception):
    """Ends a transaction that is not to take effect."""


def _halves(part: list[Outcome]) -> list[list[Outcome]]:
    """Both halves, that of the front last: it is taken first."""
    middle = len(part) // 2
    return [part[middle:], part[:middle]]


def _delays_us(outcome: Outcome) -> Iterator[int]:
    """From the closing until what follows from an outcome is due, if it is not at once."""
    if outcome.next is not None and outcome.next.delay_us > 0:
        yield outcome.next.delay_us
    if outcome.next_run_us is not None:
        yield outcome.next_run_us
