"""Inserting jobs, each at most once: by its id, and by its unique key while one is live."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from workerd import clock, duplicates
from workerd.errors import StoreBusy, StoreRefused
from workerd.job import Status, new_id
from workerd.job_spec import NewJob
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.columns import ENQUEUED_COLUMNS, JobRow

MAX_INSERT_ROWS = 1000
MAX_INSERT_BYTES = 2 * 1024 * 1024
"""Rows and bytes of one INSERT, which takes a quarter of what the server takes at once, at most (law 7)."""
_MAX_SHORT_BYTES = 512
"""Of a row: its numbers, times and commas."""
MAX_INSERT_TRIES = 5
"""A live job that held the key may have ended when it is looked up: then the key is free."""


class Inserted(NamedTuple):
    """`created` is False if the id existed, or if the live job `id` holds the unique key.

    `replaced`: whether that has the new data now.
    """

    id: bytes
    created: bool
    replaced: bool = False


_JSON = ("vars", "meta")
_OTHERS = tuple(name for name in ENQUEUED_COLUMNS if name not in _JSON)
_COLUMNS = ("id", "status", "run_at", "created_at", "expires_at", *_JSON, *_OTHERS)
_PLAIN_COLUMNS = ("id", *_JSON, *_OTHERS)
_others_of = attrgetter(*_OTHERS)
_names_of = attrgetter("handler", "unique_key", "given_key", "group_key", "name")


def insert(tx: Tx, jobs: Sequence[NewJob]) -> list[Inserted]:
    """Insert all of `jobs` that do not exist; one result for each, in order.

    Raises StoreRefused for text that is not UTF-8, StoreBusy if live jobs with a key ended again and again
    before they were looked up.
    """
    ids = [job.id or new_id() for job in jobs]
    results: dict[int, Inserted] = {}
    missing = list(range(len(jobs)))
    for _ in range(MAX_INSERT_TRIES):
        # Insert first, then read: to lock what does not exist yet would lock the gap that others insert into.
        changed = _insert_rows(tx, jobs, ids, missing)
        if changed == len(missing) and tx.counts_rows:
            results.update((n, Inserted(ids[n], True)) for n in missing)
            break
        results |= _results(tx, jobs, ids, missing)
        missing = [n for n in missing if n not in results]
        if not missing:
            break
    else:
        raise StoreBusy("the live jobs that held a unique key ended while others took it; try again")
    tx.enqueued += [results[n].id for n in range(len(jobs))]
    return [results[n] for n in range(len(jobs))]


def _insert_rows(tx: Tx, jobs: Sequence[NewJob], ids: Sequence[bytes], wanted: Sequence[int]) -> int:
    changed, made = 0, clock.to_text(tx.now)
    for part in _parts(tx, jobs, wanted):
        rows = _rows(_COLUMNS, [_values(jobs[n], ids[n], tx.now, made) for n in part])
        changed += tx.execute(rows.insert(len(part)) + tx.dialect.keep_existing("id"), rows.params)
    return changed


def _results(
    tx: Tx, jobs: Sequence[NewJob], ids: Sequence[bytes], wanted: Sequence[int]
) -> dict[int, Inserted]:
    """What became of these INSERTs, without those of which neither a row nor a holder of the key is found."""
    results = {n: Inserted(ids[n], True) for n in wanted if jobs[n].id is None and jobs[n].unique_key is None}
    # A transaction sees its own rows without a lock, and most are its own.
    results |= _by_id(tx, ids, [n for n in wanted if n not in results])
    blocked = [n for n in wanted if n not in results]
    held = _holders(tx, [jobs[n] for n in blocked])
    for n in blocked:
        holder = held.get(_live_key(tx, jobs[n].handler, jobs[n].unique_key))
        if holder is not None:
            results[n] = Inserted(holder, False)
    return results | _by_id(tx, ids, [n for n in blocked if n not in results], tx.latest)


def _by_id(tx: Tx, ids: Sequence[bytes], wanted: Sequence[int], lock: str = "") -> dict[int, Inserted]:
    """The jobs of which there is a row with their id: that of this transaction, or an earlier one."""
    times = _created_at(tx, [ids[n] for n in wanted], lock)
    # Of the same id twice, in one call or in two of the transaction, the first has made the row.
    made = {job_id for job_id, at in times.items() if at == tx.now}.difference(tx.enqueued)
    results: dict[int, Inserted] = {}
    for n in (n for n in wanted if ids[n] in times):
        results[n] = Inserted(ids[n], ids[n] in made)
        made.discard(ids[n])
    return results


def insert_new(tx: Tx, jobs: Sequence[NewJob]) -> list[JobRow]:
    """Insert jobs that have neither an id nor a unique key, with the COMMIT; their rows, as written.

    Nothing may be read of them in this transaction. Raises StoreRefused for text that is not UTF-8.
    """
    now, made = tx.now, clock.to_text(tx.now)
    ids = [new_id() for _ in jobs]
    for part in _parts(tx, jobs, range(len(jobs))):
        rows = _rows(_COLUMNS, [_values(jobs[n], ids[n], now, made) for n in part])
        tx.execute_last(rows.insert(len(part)), rows.params, count=len(part))
    tx.enqueued += ids
    return [row_of(job, job_id, now) for job, job_id in zip(jobs, ids, strict=True)]


def insert_alone(tx: Tx, job: NewJob, on_sent: Callable[[], None] | None = None) -> Inserted:
    """Insert one job that is due now and has neither an id nor a unique key, in one statement.

    `on_sent`: as in Tx.execute_alone, for a transaction without another statement. Raises StoreRefused for
    text that is not UTF-8.
    """
    if not tx.dialect.defaults_are_exact:
        return insert(tx, [job])[0]
    job_id = new_id()
    tx.enqueued.append(job_id)
    rows = _rows(_PLAIN_COLUMNS, [_plain_values(job, job_id)])
    if on_sent is None:
        tx.execute(rows.insert(1), rows.params)
    else:
        tx.execute_alone(rows.insert(1), rows.params, on_sent)
    return Inserted(job_id, True)


def posted_insert(
    jobs: Sequence[NewJob], ids: Sequence[bytes], first_attempt: str
) -> tuple[str, list[object]]:
    """The INSERT for a Posting of jobs as in `insert_alone`. Raises StoreRefused for text not in UTF-8.

    `first_attempt`: 1 as the Posting wants it, once.
    """
    rows = _rows(_PLAIN_COLUMNS, list(map(_plain_values, jobs, ids)))
    each = [f"({first_attempt}, {rows.marks})", *[f"(1, {rows.marks})"] * (len(jobs) - 1)]
    return f"INSERT INTO workerd_jobs (attempt, {rows.columns}) VALUES {', '.join(each)}", rows.params


class _Rows(NamedTuple):
    """Rows to insert: the names of their columns, the marks of one row, the values of all."""

    columns: str
    marks: str
    params: list[object]

    def insert(self, count: int) -> str:
        """The INSERT of so many rows."""
        return f"INSERT INTO workerd_jobs ({self.columns}) VALUES {', '.join([f'({self.marks})'] * count)}"


def _rows(names: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> _Rows:
    """Without the columns that are NULL in all rows, as their default is.

    Most jobs have eight of them: a fifth of the server's time for an INSERT of 1,000, 14.2 → 11.7 µs a job.
    """
    if len(rows) == 1:
        kept = tuple([n for n, value in enumerate(rows[0]) if value is not None])
    else:
        by_column = enumerate(zip(*rows, strict=True))
        kept = tuple([n for n, values in by_column if values.count(None) < len(rows)])
    columns_, marks, chosen = _shape(names, kept)
    return _Rows(columns_, marks, list(chain.from_iterable(map(chosen, rows))))


@lru_cache(maxsize=256)
def _shape(
    names: tuple[str, ...], kept: tuple[int, ...]
) -> tuple[str, str, Callable[[tuple[object, ...]], tuple[object, ...]]]:
    return ", ".join([names[n] for n in kept]), columns.marks(kept), itemgetter(*kept)


def _parts(tx: Tx, jobs: Sequence[NewJob], wanted: Iterable[int]) -> Iterable[list[int]]:
    max_bytes = MAX_INSERT_BYTES if tx.max_packet is None else min(MAX_INSERT_BYTES, tx.max_packet // 4)
    part: list[int] = []
    part_bytes = 0
    for n in wanted:
        row_bytes = _max_bytes(tx, jobs[n])
        if part and (len(part) >= MAX_INSERT_ROWS or part_bytes + row_bytes > max_bytes):
            yield part
            part, part_bytes = [], 0
        part.append(n)
        part_bytes += row_bytes
    if part:
        yield part


def _max_bytes(tx: Tx, job: NewJob) -> int:
    """Of its row in an INSERT: a character of the short texts takes four at most, escaped or not."""
    names = sum([len(text) for text in _names_of(job) if text is not None])
    json = tx.dialect.sent_bytes(job.vars) + (0 if job.meta is None else tx.dialect.sent_bytes(job.meta))
    return _MAX_SHORT_BYTES + 4 * names + json


def _plain_values(job: NewJob, job_id: bytes) -> tuple[object, ...]:
    return job_id, _text(job.vars), _text(job.meta), *_others_of(job)


def _values(job: NewJob, job_id: bytes, now: int, made: str) -> tuple[object, ...]:
    if len(job_id) != 16:
        raise StoreRefused(f"an id has 16 bytes, this one {len(job_id)}")
    status, due, expires_at = _begin(job, now)
    return (
        job_id,
        str(status),
        made if due == now else clock.to_text(due),
        made,
        columns.at(expires_at),
        _text(job.vars),
        _text(job.meta),
        *_others_of(job),
    )


def _begin(job: NewJob, now: int) -> tuple[Status, int, int | None]:
    """How its first attempt begins: status, `run_at` and `expires_at`."""
    due = job.run_at if job.run_at is not None else now + (job.delay or 0)
    waits = due > now or duplicates.is_follower(job.unique_key)
    expires_at = job.expires_at if job.expires_in is None else due + job.expires_in
    return Status.SCHEDULED if waits else Status.NEW, due, expires_at


_BLANK: dict[str, Any] = dict.fromkeys(JobRow.__struct_fields__) | dict.fromkeys(
    ("failures", "crashes", "losses"), 0
)


def row_of(job: NewJob, job_id: bytes, now: int) -> JobRow:
    """The row of its first attempt, as it is inserted."""
    status, due, expires_at = _begin(job, now)
    written = {name: getattr(job, name) for name in ENQUEUED_COLUMNS}
    written |= {"id": job_id, "attempt": 1, "status": str(status), "created_at": now}
    return JobRow(**_BLANK | written | {"run_at": due, "expires_at": expires_at})


def _text(json: bytes | None) -> str | None:
    try:
        return None if json is None else json.decode("utf-8")
    except UnicodeDecodeError:
        raise StoreRefused("vars and meta must be JSON in UTF-8") from None


def _created_at(tx: Tx, ids: Sequence[bytes], lock: str = "") -> dict[bytes, int]:
    """When the jobs with these ids were inserted, as far as they exist."""
    found: dict[bytes, int] = {}
    for part in columns.chunks(ids):
        where = f"id IN ({columns.marks(part)}) AND attempt = 1"
        rows = tx.query(f"SELECT id, created_at FROM workerd_jobs WHERE {where}{lock}", part)
        found.update((row[0], columns.time_or_zero(row[1])) for row in rows)
    return found


def _live_key(tx: Tx, handler: str, key: str | None) -> tuple[str, str]:
    """As the index compares them: MySQL takes no notice of spaces at the end."""
    if not tx.dialect.ignores_end_spaces:
        return handler, key or ""
    return handler.rstrip(" "), (key or "").rstrip(" ")


def _holders(tx: Tx, jobs: Sequence[NewJob]) -> dict[tuple[str, str], bytes]:
    """The live job that holds each unique key."""
    index, where = tx.dialect.hint("workerd_live"), tx.dialect.live_key_condition
    found: dict[tuple[str, str], bytes] = {}
    wanted = sorted({(job.handler, job.unique_key) for job in jobs if job.unique_key is not None})
    for part in columns.chunks(wanted, 100):
        rows = tx.query(
            f"SELECT handler, unique_key, id FROM workerd_jobs {index}"
            f" WHERE {' OR '.join([f'({where})'] * len(part))}{tx.latest}",
            [value for key in part for value in key],
        )
        for handler, key, job_id in rows:
            found[_live_key(tx, columns.text(handler), columns.text(key))] = job_id
    return found
