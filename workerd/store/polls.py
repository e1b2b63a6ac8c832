"""What a dispatcher asks the store for at every poll: who has work, who is paused, what is due."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from workerd.errors import UnreadableRow
from workerd.job import AttemptRef
from workerd.store import columns, group_queues
from workerd.store.base import Tx
from workerd.store.claims import holder


class PeekResult(NamedTuple):
    """Handlers with rows to claim."""

    handlers: set[str]


# Reads one index entry. The alias `h` is completed by a number.
_HANDLER_PROBE = """SELECT * FROM (SELECT {columns} FROM workerd_jobs {index}
    WHERE status = 'new' AND holder = %s LIMIT 1) AS h"""

_QUEUE_PROBE = """SELECT * FROM (SELECT {columns} FROM workerd_jobs {index}
    WHERE status = 'new' AND holder > %s AND holder < %s LIMIT 1) AS g"""


def peek(tx: Tx, handlers: Sequence[str]) -> PeekResult:
    """Which handlers have rows to claim: one statement, one index entry for each handler."""
    if not handlers:
        return PeekResult(set())
    probe = _HANDLER_PROBE.format(columns="%s AS number", index=tx.dialect.hint("workerd_holder"))
    sql = " UNION ALL ".join([f"{probe}{number}" for number in range(len(handlers))])
    params = [value for number, handler in enumerate(handlers) for value in (number, handler)]
    return PeekResult({handlers[row[0]] for row in tx.query(sql, params)})


class PollResult(NamedTuple):
    """What one poll found.

    handlers
        Those polled for that have `new` rows.
    paused
        All paused handlers.
    cancels
        Claims of this incarnation whose cancellation was requested.
    next_due
        When the first scheduled row is due, None if there is none.
    schedules
        The revision of the schedules that are set at run time.
    holds
        Limits of which something is held, and until when: store times, microseconds.
    batches
        Whether a batch has jobs to be released, cancelled or retried.
    """

    handlers: set[str]
    paused: set[str]
    cancels: list[AttemptRef]
    next_due: int | None
    schedules: int = 0
    holds: frozenset[tuple[str, int]] = frozenset()
    batches: bool = False


HAS_SLICES = "pending IN ('cancel','release','reopen','spread')"
"""Requests that `batches.work` moves on."""

_PAUSED, _CANCEL, _DUE, _NEW, _REVISION, _HOLD, _BATCH = range(7)

# A column for each type: the engines convert all values of a UNION's column to one type, signed and unsigned
# integers to DECIMAL.
_POLL = f"""SELECT {_PAUSED} AS what, NULL AS number, NULL AS id, name, NULL AS due
    FROM workerd_handlers WHERE paused_at IS NOT NULL
UNION ALL SELECT {_CANCEL}, attempt, id, NULL, NULL FROM workerd_jobs {{node_index}}
    WHERE status = 'inprogress' AND holder = %s AND cancel_requested_at IS NOT NULL
UNION ALL SELECT * FROM (SELECT {_DUE}, NULL AS number, NULL AS id, NULL AS name, due_at
    FROM workerd_jobs {{due_index}} WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1) AS d
UNION ALL SELECT {_REVISION}, revision, NULL, NULL, NULL FROM workerd_revisions WHERE name = 'schedules'
UNION ALL SELECT * FROM (SELECT {_BATCH}, NULL AS number, NULL AS id, NULL AS name, NULL AS due
    FROM workerd_requests {{pending_index}} WHERE {HAS_SLICES} LIMIT 1) AS b"""

_HOLDS = f"""UNION ALL SELECT {_HOLD}, NULL, NULL, limit_name, held_until FROM workerd_rates {{index}}
    WHERE held_until > %s"""

_PROBE_COLUMNS = f"{_NEW}, %s AS number, NULL AS id, NULL AS name, NULL AS due"


def poll(
    tx: Tx,
    node_id: bytes,
    handlers: Sequence[str],
    by_group: Collection[str] = (),
    holds_since: int | None = None,
) -> PollResult:
    """One combined query: new jobs, pauses, this incarnation's cancels, next due time, revisions.

    `by_group`: those of the handlers of which jobs may stand in queues of groups. `holds_since`: a store time
    by which holds of limits that are over are left out; None asks for none.
    """
    words = tx.dialect
    sql = _POLL.format(
        node_index=words.hint("workerd_holder"),
        due_index=words.hint("workerd_scheduled"),
        pending_index=words.hint("workerd_request_pending"),
    )
    probes, params = _probes(tx, handlers, by_group)
    params.insert(0, holder(node_id))
    sql += probes
    if holds_since is not None:
        sql += f" {_HOLDS.format(index=words.hint('workerd_rate_held'))}"
        params.append(columns.at(holds_since))
    result = PollResult(set(), set(), [], None)
    for what, number, job_id, name, due in tx.query(sql, params):
        if what == _PAUSED:
            result.paused.add(columns.lenient(name) or "")
        elif what == _CANCEL:
            result.cancels.append(AttemptRef(job_id, int(number)))
        elif what == _DUE:
            result = result._replace(next_due=_moment(due))
        elif what == _REVISION:
            result = result._replace(schedules=int(number))
        elif what == _HOLD:
            hold = columns.lenient(name) or "", _moment(due)
            result = result._replace(holds=result.holds | {hold})
        elif what == _BATCH:
            result = result._replace(batches=True)
        else:
            result.handlers.add(handlers[int(number)])
    return result


def _probes(tx: Tx, handlers: Sequence[str], by_group: Collection[str]) -> tuple[str, list[object]]:
    """What asks whether handlers have rows to claim, with its parameters."""
    index = tx.dialect.hint("workerd_holder")
    probe = _HANDLER_PROBE.format(columns=_PROBE_COLUMNS, index=index)
    in_queue = _QUEUE_PROBE.format(columns=_PROBE_COLUMNS, index=index)
    sql, params = "", list[object]()
    for number, handler in enumerate(handlers):
        sql += f" UNION ALL {probe}{number}"
        params += [number, handler]
        if handler in by_group:
            sql += f" UNION ALL {in_queue}{number}"
            params += [number, *group_queues.bounds(handler)]
    return sql, params


def _moment(due: object) -> int:
    try:
        return columns.time(due)
    except UnreadableRow:
        return 0  # a zero date
