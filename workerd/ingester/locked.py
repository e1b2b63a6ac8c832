"""Outcomes whose rows other transactions lock: durable in a file, and tried again with growing pauses."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from pathlib import Path

import msgspec

from workerd import log
from workerd.errors import StoreAway
from workerd.ingester.pending import BatchLimit, weight
from workerd.outcome import Outcome

MAX_ROWS = 2000
MAX_WEIGHT = 32 * 1024 * 1024
"""So many outcomes, or bytes of them, wait beside the others. With more of them the store counts as away."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
LOCK_TIMEOUT_S = 1.0

_CREATE = "CREATE TABLE IF NOT EXISTS outcomes (number INTEGER PRIMARY KEY, body BLOB NOT NULL)"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode

_log = log.get_logger("ingester")


class LockedOutcomes:
    """Outcomes that wait for a row of theirs, in order for each job; the file `path` survives this process.

    Writing one twice (the process died between the commit in the store and the deletion here) has no effect
    the second time, as with the spool.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._numbers = itertools.count(1)
        self._by_job: dict[bytes, deque[tuple[int, Outcome]]] = {}
        self._pause_s = FIRST_PAUSE_S
        self.rows = 0
        self._weight = 0

    @property
    def jobs(self) -> Set[bytes]:
        """The ids of the jobs that have an outcome here: further outcomes of these belong behind it."""
        return self._by_job.keys()

    def open(self) -> None:
        """Read what former processes left; a damaged file is put aside."""
        if not self._path.exists():
            return
        try:
            for number, body in self._connected().execute(
                "SELECT number, body FROM outcomes ORDER BY number"
            ):
                self._keep(number, _decode(body))
                self._numbers = itertools.count(number + 1)
        except (sqlite3.Error, msgspec.DecodeError, TypeError, OSError) as error:
            _log.error("spool.damaged", file=str(self._path), error=str(error))
            self.close()
            for suffix in ("", "-wal"):
                with contextlib.suppress(OSError):
                    os.rename(f"{self._path}{suffix}", f"{self._path}.damaged{suffix}")

    def add(self, outcomes: Collection[Outcome]) -> None:
        """Make these durable here, each once, however often it is sent.

        Raises StoreAway if there is no room, or the file cannot be written.
        """
        outcomes = [outcome for outcome in outcomes if not self._has(outcome)]
        if not outcomes:
            return
        size = sum(map(weight, outcomes))
        if self.rows + len(outcomes) > MAX_ROWS or self._weight + size > MAX_WEIGHT:
            raise StoreAway("other transactions lock the rows of too many attempts", answered=True)
        numbered = [(next(self._numbers), outcome) for outcome in outcomes]
        try:
            db = self._connected()
            with _transaction(db):
                db.executemany(
                    "INSERT INTO outcomes (number, body) VALUES (?, ?)",
                    [(number, _encode(outcome)) for number, outcome in numbered],
                )
        except (sqlite3.Error, OSError) as error:
            raise StoreAway(
                f"the rows of outcomes are locked, and {self._path} cannot be written: {error}", answered=True
            ) from None
        if not self.rows:
            _log.warning("outcomes.locked", count=len(outcomes))
        for number, outcome in numbered:
            self._keep(number, outcome)
        self._pause_s = FIRST_PAUSE_S

    def oldest(self, rows: int, max_weight: int) -> list[Outcome]:
        """The oldest outcome of each job, at most `rows`, weighing at most `max_weight`."""
        limit = BatchLimit(rows, max_weight)
        heads = (waiting[0][1] for waiting in self._by_job.values())
        return list(itertools.takewhile(lambda outcome: limit.takes(outcome, weight(outcome)), heads))

    def tried(self, outcomes: Sequence[Outcome], locked: Iterable[Outcome]) -> None:
        """These were the oldest of their jobs; those not among `locked` are in the store now."""
        still = {outcome.id for outcome in locked}
        done = [outcome.id for outcome in outcomes if outcome.id not in still]
        for job in still:  # behind the others, so that each has its turn
            self._by_job[job] = self._by_job.pop(job)
        numbers = [self._drop(job) for job in done]
        if done:
            self._pause_s = FIRST_PAUSE_S
            if not self.rows:
                _log.info("outcomes.unlocked")
        # What cannot be deleted now is written again by the next process, without effect.
        with contextlib.suppress(sqlite3.Error, OSError):
            db = self._connected()
            with _transaction(db):
                db.executemany("DELETE FROM outcomes WHERE number = ?", [(number,) for number in numbers])

    def pause(self) -> float:
        """Seconds before the next try; twice as many each time."""
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, LONGEST_PAUSE_S)
        return pause_s

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _has(self, outcome: Outcome) -> bool:
        return any(waiting == outcome for _, waiting in self._by_job.get(outcome.id, ()))

    def _keep(self, number: int, outcome: Outcome) -> None:
        self._by_job.setdefault(outcome.id, deque()).append((number, outcome))
        self.rows += 1
        self._weight += weight(outcome)

    def _drop(self, job: bytes) -> int:
        waiting = self._by_job[job]
        number, outcome = waiting.popleft()
        if not waiting:
            del self._by_job[job]
        self.rows -= 1
        self._weight -= weight(outcome)
        return number

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            try:
                os.chmod(self._path, 0o600)
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")  # each COMMIT is fsynced: law 6
                db.execute(_CREATE)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
