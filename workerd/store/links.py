"""Large graphs: each job its own row from the start, what it needs in rows too.

An ending reads and writes what depends on it, never the whole graph: so it costs the same in a graph of a
hundred jobs and of a hundred thousand. Everything here is only touched under the lock of the request's row.

A job is done when it and everything that it spawned has ended, and none failed that must not. Then it counts
as met for those that need it; one whose needs are all met begins. Its row is held until then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.clock import LATEST
from workerd.config.workflow_config import WAIT_HANDLER, OnError, WorkflowJob
from workerd.job import ENDED, Status
from workerd.outcome import Outcome
from workerd.store import columns, waits
from workerd.store.base import Tx
from workerd.store.columns import RequestRow, chunks, marks
from workerd.store.session import Row

HELD_AT = LATEST
"""`run_at` of a job that must not begin yet: its request is not complete, or it needs others."""
SLICE_NEEDS = 500
"""So many dependent jobs are told in the transaction of an ending; of more, the rest in slices."""


class Node(NamedTuple):
    """A job of a large graph.

    live
        How many have not ended of it and what it spawned.
    state
        `open`, `failed`, `done`, or `spread` while those that need it are told in slices.
    """

    id: bytes
    live: int
    state: str
    on_error: OnError


class Ends:
    """What ended of one request in this transaction.

    nodes
        By the name of what ended, the job of the graph that it belongs to.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.ended: list[Outcome] = []


def key_of(row: RequestRow, name: str) -> bytes:
    """The id of a job of this request."""
    return wf.job_id(row.id, row.created_at, name)


# -- writing


def add(tx: Tx, row: RequestRow, jobs: Sequence[WorkflowJob]) -> None:
    """Add these jobs to the graph; those that it has are left as they are."""
    nodes: list[object] = []
    needs: list[object] = []
    for job in jobs:
        own, wanted = key_of(row, job.name), dict.fromkeys(job.needs)
        spec = None if job.handler != WAIT_HANDLER else _encoded(job)
        nodes += [own, row.id, job.handler, len(wanted), job.on_error, spec, job.signal or None]
        for need in wanted:
            needs += [key_of(row, need), own]
    into = "workerd_request_jobs (id, request_id, handler, needs, on_error, wait, signal_name)"
    _insert(tx, into, 7, nodes, "id")
    _insert(tx, "workerd_request_needs (need, job)", 2, needs, "need")


def _insert(tx: Tx, into: str, width: int, values: Sequence[object], key: str) -> None:
    one = f"({marks(range(width))})"
    for part in chunks(values, width * 1000):
        rows = ", ".join([one] * (len(part) // width))
        tx.execute(f"INSERT INTO {into} VALUES {rows}{tx.dialect.keep_existing(key)}", part)


def _encoded(job: WorkflowJob) -> str:
    return msgspec.json.encode(job).decode()


def spawned(tx: Tx, row: RequestRow, owner: Node, children: Iterable[str]) -> None:
    """Note what a job of the graph spawned: those that need it get its payload too."""
    values: list[object] = []
    for child in children:
        values += [key_of(row, child), owner.id, "spawned"]
    _insert(tx, "workerd_request_needs (need, job, kind)", 3, values, "need")


# -- endings


def nodes_of(tx: Tx, row: RequestRow, names: Iterable[str]) -> dict[str, Node]:
    """Of each name the job of the graph that it is, or that spawned it."""
    candidates = {name: [key_of(row, prefix) for prefix in _prefixes(name)] for name in names}
    found: dict[bytes, Node] = {}
    for part in chunks(sorted({one for ids in candidates.values() for one in ids})):
        for job_id, live, state, on_error in tx.query(
            f"SELECT id, live, state, on_error FROM workerd_request_jobs WHERE id IN ({marks(part)})", part
        ):
            how: OnError = "continue" if columns.text(on_error) == "continue" else "fail"
            found[job_id] = Node(job_id, live, columns.text(state), how)
    nodes = {
        name: next((found[one] for one in ids if one in found), None) for name, ids in candidates.items()
    }
    return {name: node for name, node in nodes.items() if node is not None}


def _prefixes(name: str) -> list[str]:
    """The name itself, then the names that may have spawned it, the nearest first."""
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


class Begun(NamedTuple):
    """The handlers that got jobs, and the highest step of these."""

    handlers: set[str]
    step: int = 0


class Settled(NamedTuple):
    """What began; `more`: other jobs are to be told by `spread`."""

    handlers: set[str]
    step: int = 0
    more: bool = False


def settle(
    tx: Tx,
    row: RequestRow,
    ends: Ends,
    inserted: Sequence[WorkflowJob],
    *,
    stopped: bool,
    incomplete: bool = False,
) -> Settled:
    """Write what these endings mean for their jobs, and let those begin whose needs are met.

    `inserted`: what they spawned; `stopped`: the request fails, so none begins; `incomplete`: some of those
    that need them may not be there yet, so all are told by `spread`, later.
    """
    live, failed = _ended(ends)
    for owner, names in _children(ends, inserted).items():
        live[owner] += len(names)
        spawned(tx, row, owner, names)
    groups: defaultdict[tuple[int, str], list[bytes]] = defaultdict(list)
    for node, change in live.items():
        left = max(0, node.live + change)
        state = "failed" if node in failed or node.state == "failed" else "open" if left else "done"
        groups[left, state].append(node.id)
    for (left, state), ids in groups.items():
        for part in chunks(sorted(ids)):
            tx.execute(
                f"UPDATE workerd_request_jobs SET live = %s, state = %s WHERE id IN ({marks(part)})",
                (left, state, *part),
            )
    if incomplete:
        _tell_later(tx, groups[0, "done"])
        return Settled(set())
    return _tell(tx, row, groups[0, "done"], stopped=stopped)


def _tell_later(tx: Tx, done: Sequence[bytes]) -> None:
    for part in chunks(sorted(done)):
        tx.execute(f"UPDATE workerd_request_jobs SET state = 'spread' WHERE id IN ({marks(part)})", part)


def _ended(ends: Ends) -> tuple[Counter[Node], set[Node]]:
    """How many of each job ended, and which of them failed so that nothing that needs them begins."""
    live: Counter[Node] = Counter()
    failed: set[Node] = set()
    for outcome in ends.ended:
        node = ends.nodes.get(outcome.name or "")
        if node is not None and outcome.status in ENDED:
            live[node] -= 1
            if outcome.status is not Status.COMPLETED and node.on_error != "continue":
                failed.add(node)
    return live, failed


def _children(ends: Ends, inserted: Sequence[WorkflowJob]) -> dict[Node, list[str]]:
    """The names of spawned jobs, by the job of the graph that they belong to."""
    found: defaultdict[Node, list[str]] = defaultdict(list)
    for job in inserted:
        owner = next((ends.nodes[name] for name in _prefixes(job.name) if name in ends.nodes), None)
        if owner is not None:
            found[owner].append(job.name)
    return found


def _tell(tx: Tx, row: RequestRow, done: Sequence[bytes], *, stopped: bool) -> Settled:
    """Tell the jobs that need these."""
    handlers: set[str] = set()
    step, more = 0, False
    for part in chunks(sorted(done), 100):
        edges = tx.query(
            f"SELECT need, job FROM workerd_request_needs WHERE need IN ({marks(part)}) AND kind = 'open'"
            " ORDER BY need, job LIMIT %s",
            (*part, SLICE_NEEDS + 1),
        )
        if len(edges) > SLICE_NEEDS:
            _tell_later(tx, part)
            more = True
        else:
            begun = _meet(tx, row, [(need, job) for need, job in edges], stopped=stopped)
            handlers, step = handlers | begun.handlers, max(step, begun.step)
    return Settled(handlers, step, more)


def _meet(tx: Tx, row: RequestRow, edges: Sequence[tuple[bytes, bytes]], *, stopped: bool) -> Begun:
    """One need each is met."""
    by_need: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for need, job in edges:
        by_need[need].append(job)
    for need, jobs in by_need.items():
        tx.execute(
            f"UPDATE workerd_request_needs SET kind = 'met' WHERE need = %s AND job IN ({marks(jobs)})",
            (need, *jobs),
        )
    by_count: defaultdict[int, list[bytes]] = defaultdict(list)
    for job, count in Counter(job for _, job in edges).items():
        by_count[count].append(job)
    for count, jobs in by_count.items():
        tx.execute(
            f"UPDATE workerd_request_jobs SET needs = needs - %s WHERE id IN ({marks(jobs)})", (count, *jobs)
        )
    return Begun(set()) if stopped else begin(tx, row, sorted({job for _, job in edges}))


def begin(tx: Tx, row: RequestRow, ids: Sequence[bytes]) -> Begun:
    """Let those of these jobs begin whose needs are met, and that are held."""
    if not ids:
        return Begun(set())
    ready = tx.query(
        "SELECT n.id, n.handler, n.wait, j.step FROM workerd_request_jobs AS n"
        f" JOIN workerd_jobs AS j {tx.dialect.by_key} ON j.id = n.id"
        f" WHERE n.id IN ({marks(ids)}) AND n.needs = 0 AND j.status = 'scheduled' AND j.run_at = %s",
        (*ids, columns.at(HELD_AT)),
    )
    plain = sorted(job_id for job_id, _, wait, _ in ready if wait is None)
    now = columns.at(tx.now)
    if plain:
        tx.execute(
            f"UPDATE workerd_jobs {tx.dialect.by_key} SET status = 'new', run_at = %s"
            f" WHERE id IN ({marks(plain)}) AND status = 'scheduled' AND run_at = %s",
            (now, *plain, columns.at(HELD_AT)),
        )
    for job_id, _, wait, _ in ready:
        if wait is not None:
            due = waits.due_at(tx, row.id, wait_of(wait))
            tx.execute(
                f"UPDATE workerd_jobs {tx.dialect.by_key} SET status = %s, run_at = %s"
                " WHERE id = %s AND status = 'scheduled' AND run_at = %s",
                ("new" if due <= tx.now else "scheduled", columns.at(due), job_id, columns.at(HELD_AT)),
            )
    step = max((step or 0 for *_, step in ready), default=0)
    return Begun({columns.text(handler) for _, handler, _, _ in ready}, step)


_WAIT = msgspec.json.Decoder(WorkflowJob)


def wait_of(wait: bytes | str) -> WorkflowJob:
    """The job of the column `wait`."""
    return _WAIT.decode(wait)


def spread(tx: Tx, row: RequestRow, *, stopped: bool) -> Settled:
    """One slice of what is to be told of jobs that very many others need."""
    found = tx.one(
        "SELECT id FROM workerd_request_jobs WHERE request_id = %s AND state = 'spread' ORDER BY id LIMIT 1",
        (row.id,),
    )
    if found is None:
        return Settled(set())
    edges = tx.query(
        "SELECT need, job FROM workerd_request_needs WHERE need = %s AND kind = 'open' ORDER BY job LIMIT %s",
        (found[0], SLICE_NEEDS),
    )
    begun = _meet(tx, row, [(need, job) for need, job in edges], stopped=stopped)
    if len(edges) < SLICE_NEEDS:
        tx.execute("UPDATE workerd_request_jobs SET state = 'done' WHERE id = %s", (found[0],))
    return Settled(*begun, more=True)


def has_state(tx: Tx, request_id: bytes, state: str) -> bool:
    """Whether a job of this large graph is in this state."""
    found = tx.one(
        "SELECT 1 FROM workerd_request_jobs WHERE request_id = %s AND state = %s LIMIT 1", (request_id, state)
    )
    return found is not None


# -- retries


def reopen(tx: Tx, row: RequestRow, name: str | None) -> None:
    """A job that had ended is tried again."""
    for node in nodes_of(tx, row, [name or ""]).values():
        tx.execute(
            "UPDATE workerd_request_jobs SET live = live + 1, state = 'open' WHERE id = %s", (node.id,)
        )


def hold(tx: Tx, row: RequestRow, ids: Sequence[bytes]) -> None:
    """Hold those of these jobs, which were made `new` again, that need others; waits begin anew."""
    found = tx.query(
        f"SELECT id FROM workerd_request_jobs WHERE id IN ({marks(ids)}) AND (needs > 0 OR wait IS NOT NULL)",
        ids,
    )
    held = sorted(job_id for (job_id,) in found)
    if held:
        tx.execute(
            f"UPDATE workerd_jobs {tx.dialect.by_key} SET status = 'scheduled', run_at = %s"
            f" WHERE id IN ({marks(held)}) AND status = 'new'",
            (columns.at(HELD_AT), *held),
        )
        begin(tx, row, held)


# -- reading


def waiting_for(tx: Tx, request_id: bytes, signal: str) -> tuple[bool, list[bytes]]:
    """Whether a job of this graph waits for a signal, and the ids of those that have begun to."""
    found = tx.query(
        "SELECT id, needs FROM workerd_request_jobs WHERE request_id = %s AND signal_name = %s",
        (request_id, signal),
    )
    return bool(found), [job_id for job_id, needs in found if not needs]


def signals_of(tx: Tx, request_id: bytes, limit: int) -> list[str]:
    """The signals that its jobs wait for."""
    found = tx.query(
        "SELECT DISTINCT signal_name FROM workerd_request_jobs"
        " WHERE request_id = %s AND signal_name IS NOT NULL ORDER BY signal_name LIMIT %s",
        (request_id, limit),
    )
    return [columns.text(name) for (name,) in found]


def open_signals(tx: Tx, request_id: bytes, limit: int) -> list[str]:
    """The signals that its jobs wait for now."""
    found = tx.query(
        "SELECT DISTINCT n.signal_name FROM workerd_request_jobs AS n JOIN workerd_jobs AS j ON j.id = n.id"
        " WHERE n.request_id = %s AND n.signal_name IS NOT NULL AND n.needs = 0"
        " AND j.status IN ('scheduled','new') ORDER BY n.signal_name LIMIT %s",
        (request_id, limit),
    )
    return [columns.text(name) for (name,) in found]


def needed(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    """Which of these jobs others need."""
    sql = "SELECT DISTINCT need FROM workerd_request_needs WHERE need IN ({}) AND kind <> 'spawned'"
    return {need for (need,) in _rows_of(tx, sql, ids)}


def _rows_of(tx: Tx, sql: str, ids: Sequence[bytes]) -> Iterator[Row]:
    """What `sql` finds for these ids, whose marks it has in place of `{}`."""
    for part in chunks(sorted(ids)):
        yield from tx.query(sql.format(marks(part)), part)


def open_needs(tx: Tx, job_id: bytes, limit: int) -> tuple[int, list[str]]:
    """How many jobs this one still waits for, and the names of some of them."""
    row = tx.one("SELECT needs FROM workerd_request_jobs WHERE id = %s", (job_id,))
    found = tx.query(
        "SELECT DISTINCT j.name FROM workerd_request_needs AS n JOIN workerd_jobs AS j ON j.id = n.need"
        " WHERE n.job = %s AND n.kind = 'open' ORDER BY j.name LIMIT %s",
        (job_id, limit),
    )
    return (0 if row is None else row[0]), [columns.lenient(name) or "" for (name,) in found]


def held(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    """Which of these jobs still wait for others."""
    sql = "SELECT id FROM workerd_request_jobs WHERE id IN ({}) AND needs > 0"
    return {job_id for (job_id,) in _rows_of(tx, sql, ids)}


def waits_of(tx: Tx, ids: Sequence[bytes]) -> Mapping[bytes, WorkflowJob]:
    """The waits of large graphs among these jobs, by id."""
    sql = "SELECT id, wait FROM workerd_request_jobs WHERE id IN ({}) AND wait IS NOT NULL"
    return {job_id: wait_of(wait) for job_id, wait in _rows_of(tx, sql, ids)}


def inputs(tx: Tx, ids: Sequence[bytes], shown: str) -> list[tuple[Any, ...]]:
    """For each of these jobs (id, *shown) of the rows of the jobs that it needs and of what they spawned.

    `shown`: columns of workerd_jobs AS j.
    """
    found: list[tuple[Any, ...]] = []
    ended = "j.status IN ('completed','failure','cancelled')"
    for part in chunks(sorted(ids)):
        found += tx.query(
            f"SELECT n.job, {shown} FROM workerd_request_needs AS n JOIN workerd_jobs AS j ON j.id = n.need"
            f" WHERE n.job IN ({marks(part)}) AND n.kind <> 'spawned' AND {ended}",
            part,
        )
        found += tx.query(
            f"SELECT n.job, {shown} FROM workerd_request_needs AS n"
            " JOIN workerd_request_needs AS c ON c.job = n.need AND c.kind = 'spawned'"
            " JOIN workerd_jobs AS j ON j.id = c.need"
            f" WHERE n.job IN ({marks(part)}) AND n.kind <> 'spawned' AND {ended}",
            part,
        )
    return found


def remove(tx: Tx, ids: Sequence[bytes]) -> None:
    """Forget jobs that are deleted, and what needs them."""
    for part in chunks(sorted(ids)):
        tx.execute(f"DELETE FROM workerd_request_needs WHERE need IN ({marks(part)})", part)
        tx.execute(f"DELETE FROM workerd_request_jobs WHERE id IN ({marks(part)})", part)
