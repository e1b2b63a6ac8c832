"""What a dispatcher asks at every poll, in one statement: most of the time nothing is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workerd.job import Key
from workerd.store import dialect, values
from workerd.store.connection import Tx


class Sight(NamedTuple):
    """`handlers`: those that were asked for and have rows that are `new`. `paused`: any handler's name.

    `cancels`: claims that somebody wants cancelled. `next_due`: when the first scheduled row is due.
    """

    handlers: set[str]
    paused: set[str]
    cancels: list[Key]
    next_due: int | None


_PAUSED, _CANCEL, _DUE, _NEW = range(4)
# A column for each kind of value: the engines make one type of whatever stands in one, of signed and unsigned
# numbers a DECIMAL.
_LOOK = f"""SELECT {_PAUSED} AS what, NULL AS number, NULL AS id, name, NULL AS due
    FROM workerd_handlers WHERE paused_at IS NOT NULL
UNION ALL SELECT {_CANCEL}, attempt, id, NULL, NULL FROM workerd_jobs {{node_index}}
    WHERE node_id = %s AND status = 'inprogress' AND cancel_requested_at IS NOT NULL
UNION ALL SELECT * FROM (SELECT {_DUE}, NULL AS number, NULL AS id, NULL AS name, run_at
    FROM workerd_jobs {{due_index}} WHERE status = 'scheduled' ORDER BY run_at LIMIT 1) AS d"""
_HANDLER = f"""
UNION ALL SELECT * FROM (SELECT {_NEW}, %s AS number, NULL AS id, NULL AS name, NULL AS due
    FROM workerd_jobs {{claim_index}} WHERE handler = %s AND status = 'new' LIMIT 1) AS h{{number}}"""


def look(tx: Tx, node_id: bytes, handlers: Sequence[str]) -> Sight:
    """One index entry for each handler, one for what is due, and this incarnation's cancels."""
    words = dialect.of(tx)
    sql = _LOOK.format(node_index=words.node_index, due_index=words.due_index)
    params: list[object] = [node_id]
    for number, handler in enumerate(handlers):
        sql += _HANDLER.format(claim_index=words.claim_index, number=number)
        params += [number, handler]
    sight = Sight(set(), set(), [], None)
    for what, number, job_id, name, due in tx.query(sql, params):
        if what == _PAUSED:
            sight.paused.add(values.lenient(name) or "")
        elif what == _CANCEL:
            sight.cancels.append((job_id, int(number)))
        elif what == _DUE:
            sight = sight._replace(next_due=_moment(due))
        else:
            sight.handlers.add(handlers[int(number)])
    return sight


def _moment(due: object) -> int:
    try:
        return values.time(due)
    except ValueError:
        return 0  # a zero date: due since ever
