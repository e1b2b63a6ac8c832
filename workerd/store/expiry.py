"""Jobs that have not started in time: ended as `cancelled`, reason `expired`, by a sweep or at the claim.

A job's own `expires_at` stands in the index of due rows while it is `new`. A handler's own `expires` counts
from `run_at`, so those of its jobs that are over are the first ones of each of its priorities. Jobs that wait
until another of their unique key has ended are found by that key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from workerd import clock
from workerd.duplicates import FOLLOWER_PREFIX
from workerd.job import COOLER_KEY, ClaimedAttempt
from workerd.outcome import ClosedAttempt, expired
from workerd.store import columns, duplicates, group_queues, workflows
from workerd.store.base import Tx
from workerd.store.outcomes import ClosedBatch, closed_attempt
from workerd.store.session import Row
from workerd.text import seconds_text

MAX_PRIORITIES = 20
"""Of its queues in one slice; each costs a look-up of its first row in each of them."""
MAX_QUEUES = 100
"""Queues of groups in one slice."""


def is_over(attempt: int, run_at: int, expires_at: int | None, expires_us: int | None, now: int) -> bool:
    """Whether this waiting attempt has expired; `expires_us`: the handler's own."""
    if expires_at is not None:
        return expires_at <= now
    return expires_us is not None and attempt == 1 and run_at + expires_us <= now


def sentence(run_at: int, expires_at: int, now: int) -> str:
    """Why it ended."""
    waited = seconds_text(max(0, now - run_at) / clock.SECOND)
    if expires_at <= run_at:
        return f"It had to start as soon as it was due, and was still waiting after {waited}."
    allowed = seconds_text((expires_at - run_at) / clock.SECOND)
    return f"It had to start within {allowed} and was still waiting after {waited}."


def sweep(tx: Tx, limit: int) -> int:
    """End up to `limit` jobs whose `expires_at` has passed; returns how many it ended."""
    rows = tx.query(
        f"SELECT id, attempt FROM workerd_jobs {tx.dialect.hint('workerd_scheduled')}"
        " WHERE due_at <= %s AND status = 'new' ORDER BY due_at LIMIT %s",
        (columns.at(tx.now), limit),
    )
    if len(rows) < limit:
        # They have no entry among the due rows, and there are at most as many as there are running jobs.
        names = [columns.lenient(row[0]) or "" for row in tx.query("SELECT name FROM workerd_handlers")]
        rows += duplicates.followers(tx, names, "expires_at <= %s", [columns.at(tx.now)], limit)
    return _end(tx, rows, None)


class Place(NamedTuple):
    """Where the sweep of a handler goes on.

    `behind`: of each queue that was begun, the priority behind which it goes on; then come the queues of
    groups from `cursor` on, None: no more.
    """

    behind: Mapping[str, int]
    cursor: str | None


class HandlerSweep(NamedTuple):
    """The jobs that a slice ended, and where the next one goes on, None at the end."""

    ended: int
    next: Place | None


def sweep_handler(
    tx: Tx, handler: str, expires_us: int, limit: int, place: Place | None = None
) -> HandlerSweep:
    """End up to `limit` jobs of a handler without an `expires_at` of their own: one slice of its queues."""
    over = columns.at(max(0, tx.now - expires_us))
    found: list[Row] = []
    if place is None:
        place = Place({handler: _LEAST}, "")
        found = duplicates.followers(tx, [handler], _FOLLOWER_OVER, [over], limit)
    behind, cursor = place
    if not behind and cursor is not None:
        part = group_queues.names(tx, handler, cursor or None, MAX_QUEUES)
        behind, cursor = dict.fromkeys(part.names, _LEAST), part.cursor
    for _ in range(MAX_PRIORITIES):
        following = _priorities_behind(tx, behind) if behind else {}
        if following:
            found += _over(tx, following, over, limit - len(found))
        if len(found) >= limit:
            break  # what is left of these priorities comes in the next slice
        behind = following
        if not behind:
            break
    ended = _end(tx, found, expires_us)
    done = not behind and cursor is None
    return HandlerSweep(ended, None if done else Place(behind, cursor))


_LEAST = -(2**31) - 1
_FOLLOWER_OVER = "expires_at IS NULL AND attempt = 1 AND run_at <= %s"
_PRIORITY = """SELECT * FROM (SELECT {number} AS number, priority FROM workerd_jobs {index}
    WHERE status = 'new' AND holder = %s AND priority > %s ORDER BY priority LIMIT 1) AS q{number}"""
_OVER = """SELECT * FROM (SELECT id, attempt FROM workerd_jobs {index}
    WHERE status = 'new' AND holder = %s AND priority = %s AND run_at <= %s AND attempt = 1
    AND expires_at IS NULL AND (unique_key IS NULL OR unique_key <> %s)
    ORDER BY run_at LIMIT %s) AS q{number}"""


def _priorities_behind(tx: Tx, behind: Mapping[str, int]) -> dict[str, int]:
    """The next priority of each of these queues, without those that have none."""
    holders = list(behind)
    rows = tx.query(
        _of_each(tx, _PRIORITY, len(holders)),
        [value for holder in holders for value in (holder, behind[holder])],
    )
    return {holders[int(number)]: int(priority) for number, priority in rows}


def _over(tx: Tx, priorities: Mapping[str, int], over: str | None, limit: int) -> list[Row]:
    """The first attempts of jobs in these queues, of one priority each, that were due before `over`."""
    params = [
        value
        for holder, priority in priorities.items()
        for value in (holder, priority, over, COOLER_KEY, limit)
    ]
    return tx.query(_of_each(tx, _OVER, len(priorities)), params)[:limit]


def _of_each(tx: Tx, sql: str, count: int) -> str:
    index = tx.dialect.hint("workerd_holder")
    return " UNION ALL ".join([sql.format(number=n, index=index) for n in range(count)])


def _end(tx: Tx, keys: Sequence[Row], expires_us: int | None) -> int:
    """End these attempts unless they have begun meanwhile, and advance their requests; returns how many.

    Locks: request rows by id, then job rows, without those that others have locked.
    """
    count = 0
    for part in columns.chunks(sorted(keys)):
        where = columns.keys([(row[0], row[1]) for row in part])
        requests = tx.query(f"SELECT DISTINCT request_id FROM workerd_jobs WHERE {where}")
        locked = columns.lock_requests(tx, [row[0] for row in requests if row[0] is not None])
        rows = tx.query(
            "SELECT id, attempt, handler, request_id, step, name, unique_key, run_at, expires_at"
            f" FROM workerd_jobs {tx.dialect.by_key}"
            f" WHERE ({where}) AND (status = 'new' OR (status = 'scheduled' AND unique_key LIKE %s))"
            f"{tx.dialect.skip_locked}",
            [FOLLOWER_PREFIX + "%"],
        )
        ended = [attempt for row in rows if (attempt := _end_one(tx, row, expires_us)) is not None]
        batch = ClosedBatch(now=tx.now, requests=locked, ended=ended, released=[], woken=set())
        duplicates.release_followers(tx, batch)
        workflows.advance(tx, batch)
        count += len(ended)
    return count


def _end_one(tx: Tx, row: Row, expires_us: int | None) -> ClosedAttempt | None:
    job_id, attempt, handler, request_id, step, name, unique_key, due, expires_at = row
    run_at = columns.time_or_zero(due)
    # One that does not exist is over: its entry would stay in front of all due rows.
    own = None if expires_at is None else columns.time_or_zero(expires_at)
    if not is_over(attempt, run_at, own, expires_us, tx.now):
        return None
    end = own if own is not None else run_at + (expires_us or 0)
    error, now = sentence(run_at, end, tx.now), columns.at(tx.now)
    tx.execute(
        "UPDATE workerd_jobs SET status = 'cancelled', reason = 'expired', error = %s, finished_at = %s,"
        " ingested_at = %s WHERE id = %s AND attempt = %s",
        (error, now, now, job_id, attempt),
    )
    text = columns.lenient
    ended = ClaimedAttempt(
        id=job_id, attempt=attempt, claimed_at=0, handler=text(handler) or "", request_id=request_id,
        step=step, name=text(name), unique_key=text(unique_key),
    )  # fmt: skip
    return closed_attempt(expired(ended, error), b"", tx.now)
