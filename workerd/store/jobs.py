"""Inserting jobs, each at most once: by its id, and by its unique key while one is live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from workerd import clock
from workerd.errors import StoreRefused
from workerd.job import Status, new_id
from workerd.job_spec import NewJob
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.columns import ENQUEUED_COLUMNS

MAX_INSERT_ROWS = 1000
MAX_INSERT_BYTES = 2 * 1024 * 1024
"""Rows and bytes of one INSERT; vars and meta are counted."""


class Inserted(NamedTuple):
    """`created` is False if the id existed, or if the live job `id` holds the unique key."""

    id: bytes
    created: bool


_JSON = ("vars", "meta")
_OTHERS = tuple(name for name in ENQUEUED_COLUMNS if name not in _JSON)
_COLUMNS = ", ".join(("id", "status", "run_at", "created_at", *_JSON, *_OTHERS))
_PLAIN_COLUMNS = ", ".join(("id", *_JSON, *_OTHERS))
_ROW = f"({columns.marks(_COLUMNS.split())})"
_others_of = attrgetter(*_OTHERS)


def insert(tx: Tx, jobs: Sequence[NewJob]) -> list[Inserted]:
    """Insert all of `jobs` that do not exist; one result for each, in order.

    A foreign connection's driver may count a row that was left alone as changed, so existing rows are read,
    not counted. Raises StoreRefused for text that is not UTF-8.
    """
    ids = [job.id or new_id() for job in jobs]
    there = _existing(tx, [job.id for job in jobs if job.id is not None])
    wanted = [n for n, job_id in enumerate(ids) if job_id not in there]
    changed, made = 0, clock.to_text(tx.now) if wanted else ""
    for part in _parts(jobs, wanted):
        params = [value for n in part for value in _values(jobs[n], ids[n], tx.now, made)]
        changed += tx.execute(
            f"INSERT INTO workerd_jobs ({_COLUMNS}) VALUES {', '.join([_ROW] * len(part))}"
            + tx.dialect.keep_existing("id"),
            params,
        )
    held = _holders(tx, [jobs[n] for n in wanted])
    if changed < len(wanted):
        there |= _inserted_elsewhere(tx, [ids[n] for n in wanted if jobs[n].id is not None])
    return [
        Inserted(job_id, False)
        if job_id in there
        else _found(job_id, held.get((job.handler, job.unique_key)))
        for job, job_id in zip(jobs, ids, strict=True)
    ]


def insert_alone(tx: Tx, job: NewJob) -> Inserted:
    """Insert one job that is due now and has neither an id nor a unique key, in one statement.

    Raises StoreRefused for text that is not UTF-8.
    """
    if not tx.dialect.defaults_are_exact:
        return insert(tx, [job])[0]
    job_id = new_id()
    tx.execute(
        f"INSERT INTO workerd_jobs ({_PLAIN_COLUMNS}) VALUES ({columns.marks(_PLAIN_COLUMNS.split())})",
        (job_id, _text(job.vars), _text(job.meta), *_others_of(job)),
    )
    return Inserted(job_id, True)


def _found(job_id: bytes, holder: bytes | None) -> Inserted:
    if holder is None or holder == job_id:
        return Inserted(job_id, True)
    return Inserted(holder, False)


def _parts(jobs: Sequence[NewJob], wanted: Iterable[int]) -> Iterable[list[int]]:
    part: list[int] = []
    size = 0
    for n in wanted:
        size += len(jobs[n].vars) + len(jobs[n].meta or b"")
        if part and (len(part) >= MAX_INSERT_ROWS or size > MAX_INSERT_BYTES):
            yield part
            part, size = [], len(jobs[n].vars) + len(jobs[n].meta or b"")
        part.append(n)
    if part:
        yield part


def _values(job: NewJob, job_id: bytes, now: int, made: str) -> tuple[object, ...]:
    if len(job_id) != 16:
        raise StoreRefused(f"an id has 16 bytes, this one {len(job_id)}")
    due = job.run_at if job.run_at is not None else now + (job.delay or 0)
    return (
        job_id,
        str(Status.SCHEDULED if due > now else Status.NEW),
        made if due == now else clock.to_text(due),
        made,
        _text(job.vars),
        _text(job.meta),
        *_others_of(job),
    )


def _text(json: bytes | None) -> str | None:
    try:
        return None if json is None else json.decode("utf-8")
    except UnicodeDecodeError:
        raise StoreRefused("vars and meta must be JSON in UTF-8") from None


def _existing(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for part in columns.chunks(ids):
        marks = columns.marks(part)
        found.update(row[0] for row in tx.query(f"SELECT id FROM workerd_jobs WHERE id IN ({marks})", part))
    return found


def _inserted_elsewhere(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    """Which of these ids another transaction has inserted since they were read."""
    ours = clock.to_text(tx.now)
    found: set[bytes] = set()
    for part in columns.chunks(ids):
        sql = f"SELECT id FROM workerd_jobs WHERE id IN ({columns.marks(part)}) AND created_at <> %s"
        found.update(row[0] for row in tx.query(sql, [*part, ours]))
    return found


def _holders(tx: Tx, jobs: Sequence[NewJob]) -> dict[tuple[str, str | None], bytes]:
    """The live job that holds each unique key."""
    index, where = tx.dialect.hint("workerd_live"), tx.dialect.live_key_condition
    found: dict[tuple[str, str | None], bytes] = {}
    wanted = sorted({(job.handler, job.unique_key) for job in jobs if job.unique_key is not None})
    for part in columns.chunks(wanted, 100):
        found_rows = tx.query(
            f"SELECT handler, unique_key, id FROM workerd_jobs {index}"
            f" WHERE {' OR '.join([f'({where})'] * len(part))}",
            [value for key in part for value in key],
        )
        for handler, key, job_id in found_rows:
            found[columns.text(handler), columns.text(key)] = job_id
    return found
