"""One batch into the store: whole if it can be, and never stopped by one row."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from workerd import log
from workerd.clock import SECOND
from workerd.errors import CommitUnknown, StoreAway, StoreError, StoreRefused, UnreadableRow
from workerd.ingester.pending import USUAL_PACKET, weight
from workerd.ingester.stats import IngestStats
from workerd.job import AttemptRef, id_text
from workerd.outcome import Outcome, refused
from workerd.store import intervals, retries, workflows
from workerd.store import outcomes as store_outcomes
from workerd.store.base import Store, Tx
from workerd.store.outcomes import ClosedBatch

ASIDE_LIMIT = 64 * 1024 * 1024
"""Bytes of the file of outcomes that could not be recorded in any form."""


def set_aside(path: Path, outcome: Outcome, why: str, node_id: bytes) -> bool:
    """Append the outcome to a file for a person, as a line of JSON, fsynced; false if that failed."""
    record = msgspec.json.encode(
        {
            "id": id_text(outcome.id),
            "attempt": outcome.attempt,
            "node_id": (outcome.node_id or node_id).hex(),
            "why": why,
            "outcome": {name: getattr(outcome, name) for name in outcome.__struct_fields__},
        }
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size + len(record) >= ASIDE_LIMIT:
                return False
            os.write(fd, record + b"\n")
            os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


PATIENCE = 1.0
"""Seconds after which a batch that is taken apart goes on in the next turn of the loop."""
HEAVY = 256 * 1024
STRIKES = 5
"""An outcome of more than HEAVY bytes that broke the connection so often, alone, is not sent again."""
HOPELESS = 3
"""More attempts than this that cannot be recorded in any form within HOPELESS_WINDOW seconds: the store is
at fault, not they, and the rest waits."""
HOPELESS_WINDOW = 30.0

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

    `max_payload`: bytes of one payload that the store takes, as far as known. `move_on` false leaves further
    steps of requests to the dispatcher's sweep. `announce` is called when jobs became claimable, `foretell`
    with the store time at which the first scheduled one is due, if that is within `poll` seconds: for what
    is later the dispatcher looks in time by itself.
    """

    def __init__(
        self,
        store: Store,
        node_id: bytes,
        max_payload: int,
        aside: Path,
        tally: IngestStats,
        *,
        move_on: bool = True,
        announce: Callable[[], object] = lambda: None,
        foretell: Callable[[int], object] = lambda due: None,
        poll: float = 0.0,
    ) -> None:
        self._store = store
        self._follow_ups = FOLLOW_UPS if move_on else FOLLOW_UPS_WITHOUT_STEPS
        self._announce = announce
        self._foretell = foretell
        self._poll_us = int(poll * SECOND)
        self._node_id = node_id
        self._configured = max_payload
        self._aside = aside
        self._tally = tally
        self._packet: int | None = None
        self._hopeless: deque[float] = deque()
        self._doubtful: dict[AttemptRef, list[int]] = {}
        self._strikes: tuple[AttemptRef | None, int] = None, 0
        self.max_payload = max_payload
        self.refused = 0
        self.set_aside = 0
        self.rows = 0
        self.batches = 0
        self.last_rows = 0
        self.last_ms = 0.0

    @property
    def most(self) -> int:
        """Bytes of SQL of one batch: a quarter of what the server takes at once (law 7)."""
        return (self._packet or USUAL_PACKET) // 4

    def look(self) -> None:
        """See that the store answers, and what it takes. Raises StoreAway, WrongVersion."""
        self._store.check_version()
        self._packet = self._store.max_packet
        limit = self._configured
        if self._packet is not None:
            limit = max(1024, min(limit, self._packet // 2 - 64 * 1024))
        self.max_payload = limit

    def write(self, outcomes: Sequence[Outcome]) -> tuple[int, StoreAway | None]:
        """Record outcomes in order; how many from the front are done, and why not all, None for want of time.

        Done is: recorded, recorded as `refused`, without effect because the attempt has ended already,
        or set aside because it cannot be recorded in any form.
        """
        done = 0
        end = time.monotonic() + PATIENCE
        parts = [[self._fitting(outcome) for outcome in outcomes]]
        while parts and not (done and time.monotonic() > end):
            part = parts.pop()
            try:
                self._close(part)
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
                if not self._kills(part):
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
        why = f"the payload has {len(payload)} bytes, at most {self.max_payload} are taken"
        return refused(outcome, f"{why}; return less, or a reference to where it is kept")

    def _kills(self, part: list[Outcome]) -> bool:
        """Whether it is this one large outcome that breaks the connection, again and again (law 7).

        Something between us and the server may take less than the server says. Its refusal is small: if
        the store is really away, that fails too, and the outcome is kept.
        """
        if len(part) > 1 or weight(part[0]) < HEAVY:
            return False
        key, strikes = self._strikes
        self._strikes = part[0].ref, strikes + 1 if key == part[0].ref else 1
        return self._strikes[1] >= STRIKES

    def _close(self, part: list[Outcome]) -> None:
        began = time.monotonic()
        effective = self._closed(part)
        seconds = time.monotonic() - began
        self.rows += len(part)
        self.batches += 1
        self.last_rows = len(part)
        self.last_ms = round(seconds * 1000, 3)
        self._tally.batch(len(part), seconds)
        if len(effective) == len(part):
            self._tally.recorded(part)
        else:
            self._tally.recorded([outcome for outcome in part if outcome.ref in effective])

    def _closed(self, part: list[Outcome]) -> set[AttemptRef]:
        """The keys that took effect, now or by an earlier COMMIT that had no answer."""
        moment = 0

        def work(tx: Tx) -> ClosedBatch:
            nonlocal moment
            moment = tx.now
            return close(tx, part, self._node_id, self._follow_ups)

        try:
            batch = self._store.run(work)
        except CommitUnknown:
            for outcome in part:
                self._doubtful.setdefault(outcome.ref, []).append(moment)
            raise
        except UnreadableRow as error:
            raise StoreRefused(str(error)) from None
        except StoreError:
            raise
        except Exception as error:
            # A value that nobody foresaw is this row's fault too: else the row would end this process, be
            # sent again, and end the next one.
            _log.exception("an outcome could not be written")
            raise StoreRefused(f"{type(error).__name__}: {error}") from error
        if batch.woken:
            self._announce()
        effective = batch.refs
        wait = min((wait for o in part if o.ref in effective for wait in _waits(o)), default=self._poll_us)
        if wait < self._poll_us:
            self._foretell(moment + wait)
        if self._doubtful:
            effective |= self._cleared([outcome.ref for outcome in part])
        return effective

    def _cleared(self, keys: list[AttemptRef]) -> set[AttemptRef]:
        """Of these keys, those that a COMMIT without an answer has closed: they carry its moment."""
        by_moment: dict[int, list[AttemptRef]] = {}
        for key in keys:
            for moment in self._doubtful.pop(key, ()):
                by_moment.setdefault(moment, []).append(key)
        found: set[AttemptRef] = set()
        with contextlib.suppress(StoreError):  # they are only counted: what is recorded is recorded
            for moment, doubtful in by_moment.items():
                found |= self._store.read(partial(store_outcomes.ingested, keys=doubtful, moment=moment))
        return found

    def _refuse(self, outcome: Outcome, why: str) -> None:
        """End one attempt as `refused`, as well as the store lets us."""
        for form in (refused(outcome, why), refused(outcome, why, bare=True)):
            try:
                self._close([form])
            except StoreRefused as error:
                last = str(error)
                continue
            self.refused += 1
            _log.warning(
                "the store refused an outcome; its attempt ends as refused",
                job=id_text(outcome.id), attempt=outcome.attempt, handler=outcome.handler, error=why,
            )  # fmt: skip
            return
        self._spare(last)
        self.set_aside += 1
        kept = set_aside(self._aside, outcome, last, self._node_id)
        _log.error(
            "the store refuses an attempt's end in any form: it was set aside, and its row stays "
            "inprogress until it is mended by hand",
            job=id_text(outcome.id), attempt=outcome.attempt, handler=outcome.handler, error=last,
            kept=str(self._aside) if kept else "nowhere: the file cannot be written",
        )  # fmt: skip

    def _spare(self, why: str) -> None:
        """Raise StoreAway if so many were set aside of late that the store must be at fault."""
        now = time.monotonic()
        while self._hopeless and self._hopeless[0] < now - HOPELESS_WINDOW:
            self._hopeless.popleft()
        if len(self._hopeless) >= HOPELESS:
            raise StoreAway(f"the store refuses every outcome: {why}")
        self._hopeless.append(now)


def _waits(outcome: Outcome) -> Iterator[int]:
    """Microseconds after the closing until what follows from an outcome is due, if it is not at once."""
    if outcome.next is not None and outcome.next.delay_us > 0:
        yield outcome.next.delay_us
    if outcome.next_run_us is not None:
        yield outcome.next_run_us
