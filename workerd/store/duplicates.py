"""Inserting jobs whose unique key a live job may have, other than by keeping that: replace, debounce, follow.

While a job with the key runs, at most one other waits behind it: `scheduled`, with a reserved unique key and
its own in `given_key`, and with no entry among the due rows. The transaction that ends the running one gives
it the key; where the running one is no more, because a person deleted its row, a sweep does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from workerd import duplicates
from workerd.duplicates import OnConflict
from workerd.errors import StoreBusy, StoreRefused
from workerd.job import ENDED, AttemptRef, Status
from workerd.job_spec import NewJob
from workerd.outcome import Outcome
from workerd.store import columns, jobs, retries
from workerd.store.base import Tx
from workerd.store.jobs import Inserted
from workerd.store.outcomes import ClosedBatch
from workerd.store.session import Row

MAX_TRIES = 5
"""The job that held the key may have ended when it is locked: then the key is free."""
KEYS_PER_STATEMENT = 100
HANDLERS_PER_STATEMENT = 100
KEY_IS_HELD = frozenset({1062, 2067, 1555})
"""Codes of StoreRefused where another row has the unique key, in MySQL and in SQLite."""


def insert(tx: Tx, new: Sequence[NewJob]) -> list[Inserted]:
    """Insert all of `new`, or do what they say of a conflict; one result for each, in order.

    Raises StoreRefused for text that is not UTF-8, StoreBusy if live jobs ended again and again meanwhile.
    """
    given = [_windowed(job, tx.now) if job.unique_for is not None else job for job in new]
    if all(job.on_conflict is OnConflict.KEEP for job in given):
        return jobs.insert(tx, given)
    free = [n for n, job in enumerate(given) if job.unique_key is None]
    results = dict(zip(free, jobs.insert(tx, [given[n] for n in free]) if free else [], strict=True))
    # In the order of keys, so that two transactions do not wait for each other; equal keys as they came.
    for n in sorted(
        set(range(len(given))) - set(free), key=lambda n: (given[n].handler, given[n].unique_key)
    ):
        results[n] = _put(tx, given[n])
    return [results[n] for n in range(len(given))]


def _windowed(job: NewJob, now: int) -> NewJob:
    """The job as the only one of its handler and key in the present window."""
    assert job.unique_key is not None
    assert job.unique_for is not None
    return msgspec.structs.replace(
        job,
        id=duplicates.window_id(job.handler, job.unique_key, job.unique_for, now),
        unique_key=duplicates.window_key(job.unique_key, job.unique_for, now),
        given_key=job.unique_key,
    )


class _Live(NamedTuple):
    """A live row that is locked."""

    id: bytes
    attempt: int
    status: Status


def _put(tx: Tx, job: NewJob) -> Inserted:
    for _ in range(MAX_TRIES):
        # Insert first: to lock what does not exist yet would lock the gap that others insert into.
        [inserted] = jobs.insert(tx, [job])
        if inserted.created or job.on_conflict is OnConflict.KEEP:
            return inserted
        done = _resolve(tx, job)
        if done is not None:
            return done
    raise StoreBusy("the live jobs that held a unique key ended while others took it; try again")


def _resolve(tx: Tx, job: NewJob) -> Inserted | None:
    """What the job does with the live ones of its key; None if its key has become free."""
    key = job.unique_key or ""
    following = _follower_key(tx, key)
    holder, follower = _locked(tx, job.handler, key), _locked(tx, job.handler, following)
    state = duplicates.holder_state(None if holder is None else holder.status)
    match duplicates.ACTIONS[state, follower is not None]:
        case "insert":
            return None
        case "replace_holder":
            assert holder is not None
            return _replace(tx, job, holder, follows=False)
        case "replace_follower":
            assert follower is not None
            return _replace(tx, job, follower, follows=holder is not None)
        case "insert_follower":
            [inserted] = jobs.insert(tx, [msgspec.structs.replace(job, unique_key=following, given_key=key)])
            return inserted if inserted.created else None


def _follower_key(tx: Tx, key: str) -> str:
    """The reserved key of what waits behind this one, as the engine compares keys."""
    return duplicates.follower_key(key.rstrip(" ") if tx.dialect.ignores_end_spaces else key)


def holder_status(tx: Tx, handler: str, key: str) -> Status | None:
    """The status of the live job that holds a unique key, None if there is none."""
    index, where = tx.dialect.hint("workerd_live"), tx.dialect.live_key_condition
    row = tx.one(f"SELECT status FROM workerd_jobs {index} WHERE {where}", (handler, key))
    return None if row is None else columns.job_status(row[0])


def _locked(tx: Tx, handler: str, key: str) -> _Live | None:
    index, where = tx.dialect.hint("workerd_live"), tx.dialect.live_key_condition
    row = tx.one(
        f"SELECT id, attempt, status FROM workerd_jobs {index} WHERE {where}{tx.dialect.row_lock}",
        (handler, key),
    )
    return None if row is None else _Live(row[0], row[1], columns.job_status(row[2]))


def _replace(tx: Tx, job: NewJob, row: _Live, *, follows: bool) -> Inserted:
    """Give a waiting row the new data; one that `follows` stays behind the running job."""
    due = job.run_at if job.run_at is not None else tx.now + (job.delay or 0)
    if job.on_conflict is OnConflict.DEBOUNCE:
        sql = f"SELECT created_at FROM workerd_jobs WHERE id = %s AND attempt = 1{tx.latest}"
        created = tx.one(sql, (row.id,))
        created_at = tx.now if created is None else columns.time_or_zero(created[0])
        due = duplicates.due_at(tx.now, job.delay or 0, created_at, job.max_delay)
    status = Status.SCHEDULED if follows or due > tx.now else Status.NEW
    # With the old data's it might be over before the new data is due.
    expires_at = job.expires_at if job.expires_in is None else due + job.expires_in
    tx.execute(
        "UPDATE workerd_jobs SET vars = %s, meta = %s, priority = %s, group_key = %s, queue = NULL,"
        " run_at = %s, expires_at = %s, status = %s, unique_key = %s, given_key = %s"
        " WHERE id = %s AND attempt = %s",
        (
            job.vars.decode(), None if job.meta is None else job.meta.decode(), job.priority, job.group_key,
            columns.at(due), columns.at(expires_at), str(status),
            _follower_key(tx, job.unique_key or "") if follows else job.unique_key,
            job.unique_key if follows else None,
            row.id, row.attempt,
        ),
    )  # fmt: skip
    tx.enqueued.append(row.id)
    return Inserted(row.id, created=False, replaced=True)


_WHO_WAITS = """SELECT * FROM (SELECT id, attempt FROM workerd_jobs {index}
    WHERE {keys} AND {condition} LIMIT %s) AS h{number}"""


def followers(
    tx: Tx, handlers: Sequence[str], condition: str, params: Sequence[object], limit: int
) -> list[Row]:
    """Ids and attempts of jobs that wait until another of their key has ended, at most `limit` a handler."""
    return _of_each(tx, _WHO_WAITS, handlers, params, limit, condition=condition)


def _of_each(
    tx: Tx, sql: str, handlers: Sequence[str], params: Sequence[object], limit: int, **words: str
) -> list[Row]:
    """What a statement finds among the keys of followers of each handler."""
    found: list[Row] = []
    words |= {"keys": tx.dialect.live_keys_condition, "index": tx.dialect.hint("workerd_live")}
    for part in columns.chunks(handlers, HANDLERS_PER_STATEMENT):
        each = [sql.format(number=n, **words) for n in range(len(part))]
        values = [v for name in part for v in (name, *duplicates.FOLLOWER_KEYS, *params, limit)]
        found += tx.query(" UNION ALL ".join(each), values)
    return found


_GIVE_KEY = (
    "unique_key = given_key, given_key = NULL, status = CASE WHEN run_at > %s THEN 'scheduled' ELSE 'new' END"
)


def release_followers(tx: Tx, batch: ClosedBatch) -> None:
    """Let those go on that waited until these jobs ended: each gets its key, and is due as it was to be."""
    ended = sorted({
        (e.outcome.handler, _follower_key(tx, e.outcome.unique_key))
        for e in batch.ended
        if _has_freed_its_key(e.outcome) and e.outcome.unique_key is not None
    })  # fmt: skip
    if not ended:
        return
    for part in columns.chunks(ended, KEYS_PER_STATEMENT):
        if _release_behind(tx, part, batch.now):
            batch.woken |= {handler for handler, _ in part}


def _release_behind(tx: Tx, following: Sequence[tuple[str, str]], now: int) -> int:
    """Let those with these reserved keys, each of a handler, go on; returns their number.

    Where a live job has the key, as the one that ended lost it while it ran, they wait for that one's end.
    """
    index, where = tx.dialect.hint("workerd_live"), tx.dialect.live_key_condition
    sql = f"UPDATE workerd_jobs {index} SET {_GIVE_KEY} WHERE {' OR '.join([f'({where})'] * len(following))}"
    try:
        return tx.execute(sql, [columns.at(now), *(value for key in following for value in key)])
    except StoreRefused as error:
        if error.code not in KEY_IS_HELD:
            raise
    return sum(_release_behind(tx, [key], now) for key in following) if len(following) > 1 else 0


def _has_freed_its_key(outcome: Outcome) -> bool:
    """Whether the end of the attempt left its unique key without a live job."""
    key = outcome.unique_key
    if key is None or key.startswith("~") or outcome.status not in ENDED:
        return False
    return not (outcome.error or "").endswith(retries.KEY_HELD)


# -- followers of jobs that are no more

_WITHOUT_HOLDER = """SELECT * FROM (SELECT f.id, f.attempt
    FROM (SELECT id, attempt, handler, given_key FROM workerd_jobs {index} WHERE {keys}) AS f
    LEFT JOIN workerd_jobs AS h {index} ON {holds} WHERE h.id IS NULL LIMIT %s) AS h{number}"""
_FOLLOWS = "status = 'scheduled' AND unique_key >= %s AND unique_key < %s"


def without_holder(tx: Tx, handlers: Sequence[str], limit: int) -> list[AttemptRef]:
    """Jobs that wait behind one that is no more, at most `limit` a handler; not locked.

    In one statement, which sees a job's end and what that lets go together.
    """
    rows = _of_each(tx, _WITHOUT_HOLDER, handlers, (), limit, holds=tx.dialect.holds_given_key)
    return [AttemptRef(*row) for row in rows]


def release(tx: Tx, refs: Sequence[AttemptRef]) -> int:
    """Let these jobs go on that still wait behind one that is no more; returns their number.

    What others have locked is left for the next time, and so is a job whose key another has taken meanwhile.
    """
    released = 0
    for part in columns.chunks(sorted(refs)):
        rows = tx.query(
            f"SELECT id, attempt FROM workerd_jobs {tx.dialect.by_key}"
            f" WHERE ({columns.keys(part)}) AND {_FOLLOWS}{tx.dialect.skip_locked}",
            duplicates.FOLLOWER_KEYS,
        )
        released += sum(_give_key(tx, AttemptRef(*row)) for row in sorted(rows))
    return released


def _give_key(tx: Tx, ref: AttemptRef) -> bool:
    """Give a locked row its own key; False if another has it."""
    try:
        sql = f"UPDATE workerd_jobs SET {_GIVE_KEY} WHERE id = %s AND attempt = %s"
        return tx.execute(sql, (columns.at(tx.now), *ref)) > 0
    except StoreRefused as error:
        if error.code not in KEY_IS_HELD:
            raise
        return False
