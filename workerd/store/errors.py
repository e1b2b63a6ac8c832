"""Error groups: failures with one fingerprint, counted by the transaction that closes their attempts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from workerd import clock
from workerd.errors import InvalidValue, NotFound
from workerd.outcome import ClosedAttempt, Outcome
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.columns import Page, chunks, marks
from workerd.store.outcomes import ClosedBatch
from workerd.store.session import Row

HOURS = 24
"""How far back the counts by hour reach."""
_HOUR_US = 3600 * clock.SECOND


class GroupRow(msgspec.Struct, kw_only=True, gc=False):
    """One group; `error`, `job_id` and `attempt` are those of its newest failure.

    `hours`: failures in each of the last HOURS hours, oldest first. Times are store times, microseconds.
    """

    fingerprint: bytes
    handler: str
    error_class: str
    error: str | None
    job_id: bytes
    attempt: int
    first_seen: int | None
    last_seen: int | None
    count: int
    resolved_at: int | None
    resolved_by: str | None
    muted_until: int | None
    hours: list[int]


_COLUMNS = ", ".join(GroupRow.__struct_fields__)
_BY_HOUR = msgspec.json.Decoder(dict[int, int])


def _by_hour(text: object) -> dict[int, int]:
    """Counts by hour since the epoch; anything else than we wrote counts as none."""
    try:
        return _BY_HOUR.decode(text) if isinstance(text, bytes) else {}
    except msgspec.MsgspecError:
        return {}


def _group(row: Row, now: int) -> GroupRow:
    fingerprint, handler, error_class, error, job_id, attempt, first, last, count, *rest, hours = row
    resolved_at, resolved_by, muted_until = rest
    by_hour = _by_hour(hours)
    newest = now // _HOUR_US
    return GroupRow(
        fingerprint=fingerprint,
        handler=columns.lenient(handler) or "",
        error_class=columns.lenient(error_class) or "",
        error=columns.lenient(error),
        job_id=job_id,
        attempt=attempt,
        first_seen=columns.lenient_time(first),
        last_seen=columns.lenient_time(last),
        count=count,
        resolved_at=columns.lenient_time(resolved_at),
        resolved_by=columns.lenient(resolved_by),
        muted_until=columns.lenient_time(muted_until),
        hours=[by_hour.get(hour, 0) for hour in range(newest - HOURS + 1, newest + 1)],
    )


# -- counting


class _Key(NamedTuple):
    fingerprint: bytes
    handler: str


def count(tx: Tx, batch: ClosedBatch) -> None:
    """Count the failures of the batch in their groups; a resolved group that comes back is open again.

    Locks: rows of groups by their key, after the job rows; nothing is locked after them.
    """
    found: dict[_Key, list[ClosedAttempt]] = defaultdict(list)
    for ended in batch.ended:
        if ended.outcome.fingerprint is not None:
            found[_Key(ended.outcome.fingerprint, ended.outcome.handler)].append(ended)
    for part in chunks(sorted(found)):
        batch.new_errors += _count(tx, {key: found[key] for key in part})


def _count(tx: Tx, found: Mapping[_Key, Sequence[ClosedAttempt]]) -> list[_Key]:
    """Write each group once; returns those that are new, or came back, and are not muted."""
    rows = {_Key(row[0], columns.lenient(row[1]) or ""): row[2:] for row in _locked(tx, list(found))}
    known = {key: row for key, row in rows.items() if key in found}
    params: list[object] = []
    for key, failures in found.items():
        params += _values(key, failures, _by_hour(known[key][0]) if key in known else {})
    row = f"({', '.join(['%s'] * len(_INSERTED))})"
    tx.execute(
        f"INSERT INTO workerd_errors ({', '.join(_INSERTED)}) VALUES {', '.join([row] * len(found))}"
        + tx.dialect.update_existing("fingerprint, handler", _UPDATES),
        params,
    )
    fresh = [key for key in found if key not in known]
    if fresh:
        # Another transaction may have inserted one of them since they were looked for.
        sql = f"SELECT fingerprint, handler, count FROM workerd_errors WHERE fingerprint IN ({marks(fresh)})"
        counts = {_Key(r[0], columns.lenient(r[1]) or ""): r[2] for r in tx.query(sql, _fingerprints(fresh))}
        fresh = [key for key in fresh if counts.get(key) == len(found[key])]
    back = [
        key
        for key, (_, resolved_at, muted) in known.items()
        if _came_back(tx, found[key], resolved_at, muted)
    ]
    return [*fresh, *back]


def _locked(tx: Tx, keys: Sequence[_Key]) -> list[Row]:
    return tx.query(
        f"SELECT fingerprint, handler, hours, resolved_at, muted_until FROM workerd_errors"
        f" WHERE fingerprint IN ({marks(keys)}) ORDER BY fingerprint, handler{tx.dialect.row_lock}",
        _fingerprints(keys),
    )


def _fingerprints(keys: Sequence[_Key]) -> list[bytes]:
    return [key.fingerprint for key in keys]


_INSERTED = (
    "fingerprint", "handler", "error_class", "error", "job_id", "attempt", "first_seen", "last_seen",
    "count", "kept", "hours",
)  # fmt: skip
_NEWER = "CASE WHEN {new.last_seen} >= last_seen THEN {new.%s} ELSE %s END"
_STAYS_RESOLVED = "CASE WHEN {new.last_seen} > resolved_at THEN NULL ELSE %s END"
# In this order: an engine may see in each what those before it have set.
_UPDATES = {
    "count": "count + {new.count}",
    "kept": "kept + {new.kept}",
    "hours": "{new.hours}",
    **{name: _NEWER % (name, name) for name in ("error_class", "error", "job_id", "attempt")},
    **{name: _STAYS_RESOLVED % name for name in ("resolved_by", "resolved_at")},
    "first_seen": "CASE WHEN {new.first_seen} < first_seen THEN {new.first_seen} ELSE first_seen END",
    "last_seen": "CASE WHEN {new.last_seen} > last_seen THEN {new.last_seen} ELSE last_seen END",
}


def _values(key: _Key, failures: Sequence[ClosedAttempt], by_hour: dict[int, int]) -> list[object]:
    """The parameters of one row, in the order of _INSERTED."""
    newest = max(failures, key=lambda e: (e.finished_at, e.outcome.ref))
    outcome = newest.outcome
    hours = Counter(by_hour)
    hours.update(e.finished_at // _HOUR_US for e in failures)
    kept = {hour: n for hour, n in hours.items() if hour > max(hours) - HOURS}
    return [
        key.fingerprint,
        key.handler,
        outcome.error_class,
        outcome.error,
        outcome.id,
        outcome.attempt,
        columns.at(min(e.finished_at for e in failures)),
        columns.at(newest.finished_at),
        len(failures),
        len(failures),
        msgspec.json.encode(kept).decode(),
    ]


def _came_back(tx: Tx, failures: Sequence[ClosedAttempt], resolved_at: object, muted_until: object) -> bool:
    if resolved_at is None or columns.time_or_zero(muted_until) > tx.now:
        return False
    return max(e.finished_at for e in failures) > columns.time_or_zero(resolved_at)


def lockable(tx: Tx, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Lock the groups of these outcomes that no other transaction has locked; the outcomes of those."""
    keys = sorted({o.fingerprint for o in outcomes if o.fingerprint is not None})
    if not keys:
        return list(outcomes)
    sql = f"SELECT fingerprint FROM workerd_errors WHERE fingerprint IN ({marks(keys)}) ORDER BY fingerprint"
    locked = columns.lock_free(tx, sql, keys).others
    return [o for o in outcomes if (o.fingerprint,) not in locked]


def forget(tx: Tx, removed: Mapping[tuple[bytes, bytes], int]) -> None:
    """So many failed attempts, by fingerprint and handler, were deleted: groups without any go too.

    Locks: as `count`.
    """
    for (fingerprint, handler), rows in sorted(removed.items()):
        key = (fingerprint, columns.lenient(handler))
        where = "fingerprint = %s AND handler = %s"
        tx.execute(
            f"UPDATE workerd_errors SET kept = CASE WHEN kept > %s THEN kept - %s ELSE 0 END WHERE {where}",
            (rows, rows, *key),
        )
        tx.execute(f"DELETE FROM workerd_errors WHERE {where} AND kept = 0", key)


# -- for people


def list_(
    tx: Tx,
    *,
    handler: str | None = None,
    since: int | None = None,
    everything: bool = False,
    limit: int,
    after: str | None = None,
) -> Page[GroupRow]:
    """Groups, the one that failed last first.

    `since`: a store time after which it failed. `everything`: also those that are resolved or muted.
    """
    where, params = ["1 = 1"], list[object]()
    if not everything:
        where.append("resolved_at IS NULL AND (muted_until IS NULL OR muted_until <= %s)")
        params.append(columns.at(tx.now))
    if handler is not None:
        where.append("handler = %s")
        params.append(handler)
    if since is not None:
        where.append("last_seen >= %s")
        params.append(columns.at(since))
    if after is not None:
        moment, fingerprint = _read_cursor(after)
        where.append("last_seen <= %s AND (last_seen < %s OR fingerprint < %s)")
        params += [columns.at(moment), columns.at(moment), fingerprint]
    rows = tx.query(
        f"SELECT {_COLUMNS} FROM workerd_errors {tx.dialect.hint('workerd_error_seen')}"
        f" WHERE {' AND '.join(where)} ORDER BY last_seen DESC, fingerprint DESC LIMIT %s",
        [*params, limit + 1],
    )
    groups = [_group(row, tx.now) for row in rows[:limit]]
    last = groups[-1] if len(rows) > limit else None
    return Page(groups, None if last is None else f"{last.last_seen or 0}.{last.fingerprint.hex()}")


def _read_cursor(text: str) -> tuple[int, bytes]:
    moment, _, fingerprint = text.partition(".")
    try:
        if not moment.isascii() or not moment.isdigit() or len(moment) > 18 or len(fingerprint) != 16:
            raise ValueError
        return int(moment), bytes.fromhex(fingerprint)
    except ValueError:
        raise InvalidValue("expected `after` to be the `next` of a page before it") from None


def find(tx: Tx, fingerprint: bytes) -> GroupRow | None:
    """The group with this fingerprint."""
    row = tx.one(f"SELECT {_COLUMNS} FROM workerd_errors WHERE fingerprint = %s LIMIT 1", (fingerprint,))
    return None if row is None else _group(row, tx.now)


def handlers_of(tx: Tx, fingerprint: bytes) -> list[str]:
    """The handlers that failed with it."""
    rows = tx.query("SELECT handler FROM workerd_errors WHERE fingerprint = %s", (fingerprint,))
    return [columns.lenient(row[0]) or "" for row in rows]


def get(tx: Tx, fingerprint: bytes) -> GroupRow:
    """The group with this fingerprint. Raises NotFound."""
    found = find(tx, fingerprint)
    if found is None:
        raise NotFound("Error group not found. `workerd errors --all` lists existing groups.")
    return found


def resolve(tx: Tx, fingerprint: bytes, by: str) -> bool:
    """Close a group until it fails again; false if it was closed. Raises NotFound."""
    get(tx, fingerprint)
    changed = tx.execute(
        "UPDATE workerd_errors SET resolved_at = %s, resolved_by = %s"
        " WHERE fingerprint = %s AND resolved_at IS NULL",
        (columns.at(tx.now), by, fingerprint),
    )
    return changed > 0


def mute(tx: Tx, fingerprint: bytes, until: int) -> None:
    """Leave a group out of lists and the metric until this store time. Raises NotFound."""
    get(tx, fingerprint)
    tx.execute(
        "UPDATE workerd_errors SET muted_until = %s WHERE fingerprint = %s", (columns.at(until), fingerprint)
    )
