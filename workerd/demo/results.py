"""What the store says of the demo's jobs: how far they are, and in the end how each one ended."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from workerd.job import ENDED, Status
from workerd.store import Store, Tx
from workerd.store.values import identifier, lenient, text


@dataclass
class Progress:
    """Jobs of one handler by state, counting each job once."""

    total: int
    ended: int = 0
    running: int = 0
    retried: int = 0


def progress(store: Store, totals: dict[str, int]) -> dict[str, Progress]:
    """How far the jobs are, by handler."""
    found = {handler: Progress(total) for handler, total in totals.items()}
    rows = store.read(
        lambda tx: tx.query("SELECT handler, status, COUNT(*) FROM workerd_jobs GROUP BY handler, status")
    )
    for handler, status, count in rows:
        of = found.setdefault(text(handler), Progress(0))
        match Status(text(status)):
            case Status.COMPLETED | Status.FAILURE | Status.CANCELLED:
                of.ended += count
            case Status.INPROGRESS:
                of.running += count
            case Status.RETRY:
                of.retried += count
    return found


def running(store: Store, handler: str) -> list[bytes]:
    """Ids of the handler's jobs that run now."""
    rows = store.read(
        lambda tx: tx.query(
            "SELECT id FROM workerd_jobs WHERE handler = %s AND status = 'inprogress'",
            (handler,),
        )
    )
    return [identifier(job_id) for (job_id,) in rows]


@dataclass(frozen=True)
class Ended:
    """One job that has ended: how, after how many attempts, and how long each of them ran."""

    id: bytes
    handler: str
    status: str
    reason: str
    error: str
    vars: str
    payload: str
    attempts: int
    run_us: tuple[int, ...]


@dataclass
class Group:
    """Jobs of one handler that ended in the same way."""

    handler: str
    status: str
    reason: str
    jobs: list[Ended] = field(default_factory=list)

    @property
    def attempts(self) -> int:
        return sum(job.attempts for job in self.jobs)

    def percentile(self, share: float) -> float | None:
        """Seconds within which this share of the attempts ran."""
        times = sorted(us for job in self.jobs for us in job.run_us)
        return times[max(0, math.ceil(share * len(times)) - 1)] / 1e6 if times else None

    @property
    def slowest(self) -> Ended | None:
        """The job with the longest attempt."""
        return max((job for job in self.jobs if job.run_us), key=lambda job: max(job.run_us), default=None)


class Results:
    """All that ended, against all that was enqueued."""

    def __init__(self, ended: Sequence[Ended], expected: set[bytes], unclosed: int) -> None:
        self.ended = ended
        self.unclosed = unclosed
        counts = Counter(job.id for job in ended)
        self.missing = expected - counts.keys()
        self.strange = counts.keys() - expected
        self.twice = {job_id for job_id, count in counts.items() if count > 1}

    @property
    def complete(self) -> bool:
        """Whether every job that was enqueued has exactly one end, and nothing else is there."""
        return not (self.missing or self.strange or self.twice or self.unclosed)

    def groups(self, order: Sequence[str]) -> list[Group]:
        """Jobs by handler, in this order, and by the way they ended, the most frequent first."""
        groups: dict[tuple[str, str, str], Group] = {}
        for job in self.ended:
            key = (job.handler, job.status, job.reason)
            groups.setdefault(key, Group(*key)).jobs.append(job)
        places = {handler: place for place, handler in enumerate(order)}

        def place(group: Group) -> tuple[int, int, str]:
            return places.get(group.handler, len(places)), -len(group.jobs), group.reason

        return sorted(groups.values(), key=place)


def results(store: Store, expected: set[bytes]) -> Results:
    """How every job ended, read from the store."""
    return store.read(lambda tx: _results(tx, expected))


def _results(tx: Tx, expected: set[bytes]) -> Results:
    times: dict[bytes, list[int]] = defaultdict(list)
    attempts: Counter[bytes] = Counter()
    unclosed = 0
    for job_id, status, run_us in tx.query("SELECT id, status, run_us FROM workerd_jobs"):
        attempts[job_id] += 1
        if run_us is not None:
            times[job_id].append(run_us)
        if Status(text(status)) not in (*ENDED, Status.RETRY):
            unclosed += 1
    rows = tx.query(
        "SELECT id, handler, status, reason, error, vars, payload FROM workerd_jobs"
        " WHERE status IN ('completed', 'failure', 'cancelled')"
    )
    ended = [
        Ended(
            id=identifier(row[0]),
            handler=text(row[1]),
            status=text(row[2]),
            reason=lenient(row[3]) or "",
            error=lenient(row[4]) or "",
            vars=lenient(row[5]) or "",
            payload=lenient(row[6]) or "",
            attempts=attempts[row[0]],
            run_us=tuple(times[row[0]]),
        )
        for row in rows
    ]
    return Results(ended, expected, unclosed)


def counted(group: Group) -> Counter[str]:
    """The sums of the counts that the jobs of a group returned."""
    sums: Counter[str] = Counter()
    for job in group.jobs:
        try:
            sums.update(msgspec.json.decode(job.payload, type=dict[str, int]))
        except msgspec.MsgspecError:
            continue
    return sums
