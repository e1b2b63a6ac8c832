"""The inputs of a claimed job of a request: params, extras, and payloads of the jobs it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.errors import InvalidValue, NotFound, UnreadableRow
from workerd.job import AttemptRef, Claim
from workerd.outcome import Outcome, cancelled, failed
from workerd.store import columns, links, workflows
from workerd.store.base import Tx
from workerd.store.columns import chunks, marks
from workerd.store.session import Row

MAX_BATCH_BYTES = 8 << 20
"""Bytes of inputs in one claim; jobs beyond it stay `new`."""
MAX_FAILED = 1000
"""Names of failed jobs that a job of `final` is told."""
MAX_JOB_BYTES = 24 << 20
"""Bytes of inputs with which a job can still be sent to a worker."""


class Enriched(NamedTuple):
    """`claims` with inputs; `broken`: outcomes of those that cannot be run. The rest was released."""

    claims: list[Claim]
    broken: list[Outcome]


class _Context(NamedTuple):
    """What the claims need of a request. `size`: bytes of params and extras."""

    workflow: str
    status: str
    size: int
    steps: bytes | None
    cycle: int


class _Payload(NamedTuple):
    """What a needed job returned; `failed`: it has failed, and the request goes on."""

    ref: AttemptRef
    type: str | None
    size: int
    failed: bool


class _Plan(NamedTuple):
    """The names that each job of a graph needs; jobs of `final` without needs are told what failed.

    stages
        The jobs of `then` and `final`: to them a job that is needed and not there has failed.
    given
        By the name that a job of `final` has in this cycle, the one that its graph gave it.
    """

    needs: Mapping[str, tuple[str, ...]]
    final: frozenset[str]
    linked: bool = False
    stages: frozenset[str] = frozenset()
    given: Mapping[str, str] = {}

    @property
    def names(self) -> set[str]:
        """The jobs to which payloads belong; of a batch, which is not in its graph, those that are needed."""
        return self.needs.keys() | {need for needed in self.needs.values() for need in needed}

    def shown(self, need: str, name: str) -> str:
        """The name under which a payload of `need`, or of what it spawned, is handed on."""
        return self.given.get(need, need) + name[len(need) :]


def enrich(tx: Tx, claims: Sequence[Claim]) -> Enriched:
    """Add their inputs to claims, in the transaction that claims them.

    A job whose request has ended or does not exist is not run. Sizes are queried before any content,
    because any program may have written the rows.
    """
    ids = sorted({c.request_id for c in claims if c.request_id is not None})
    contexts = _contexts(tx, ids)
    needed = _needed(tx, claims, contexts)
    broken: list[Outcome] = []
    accepted: list[Claim] = []
    surplus: list[AttemptRef] = []
    total = 0
    for claim in claims:
        context = contexts.get(claim.request_id or b"")
        size = (context.size if context else 0) + sum(p.size for p in needed.get(claim.ref, {}).values())
        refused = _refused(claim, context, size)
        if refused is not None:
            broken.append(refused)
        elif total and total + size > MAX_BATCH_BYTES:
            surplus.append(claim.ref)
        else:
            total += size
            accepted.append(claim)
    _release(tx, surplus)
    return Enriched(_filled(tx, accepted, needed), broken)


def inputs_of(tx: Tx, claim: Claim) -> Claim:
    """The claim of one job with its inputs as they are now, also where its request has ended.

    Raises NotFound where the request is gone, UnreadableRow where the inputs are too long to be sent.
    """
    if claim.request_id is None:
        return claim
    contexts = _contexts(tx, [claim.request_id])
    context = contexts.get(claim.request_id)
    if context is None:
        raise NotFound("The job's request is no longer in the store, and with it what the job would get.")
    needed = _needed(tx, [claim], contexts)
    size = context.size + sum(payload.size for payload in needed.get(claim.ref, {}).values())
    if size > MAX_JOB_BYTES:
        raise UnreadableRow(f"its inputs have {size} bytes, {MAX_JOB_BYTES} are allowed")
    return _filled(tx, [claim], needed)[0]


def _contexts(tx: Tx, ids: Sequence[bytes]) -> dict[bytes, _Context]:
    size = tx.dialect.byte_length
    found: dict[bytes, _Context] = {}
    for part in chunks(ids):
        for row in tx.query(
            f"SELECT id, workflow, status, {size('params')} + {size('extras')}, steps, cycle"
            f" FROM workerd_requests WHERE id IN ({marks(part)})",
            part,
        ):
            found[row[0]] = _Context(columns.lenient(row[1]) or "", columns.lenient(row[2]) or "", *row[3:])
    return found


def _needed(
    tx: Tx, claims: Sequence[Claim], contexts: dict[bytes, _Context]
) -> dict[AttemptRef, dict[str, _Payload]]:
    """The payloads, by name, of the jobs that each claim needs and of those they spawned."""
    plans = {request_id: _plan(context) for request_id, context in contexts.items()}
    wanted = [
        c
        for c in claims
        if (plan := plans.get(c.request_id or b"")) is not None
        and (plan.needs.get(c.name or "") or c.name in plan.final)
    ]
    there = _payloads(tx, sorted({c.request_id for c in wanted if c.request_id is not None}))
    by_owner = {request_id: _by_owner(plans[request_id], of) for request_id, of in there.items()}
    found: dict[AttemptRef, dict[str, _Payload]] = {}
    for claim in wanted:
        request_id = claim.request_id or b""
        if plans[request_id].needs.get(claim.name or ""):
            found[claim.ref] = _of_needs(claim, plans[request_id], by_owner.get(request_id, {}))
        else:
            failed = ((n, p) for n, p in there[request_id].items() if p.failed)
            found[claim.ref] = dict(islice(failed, MAX_FAILED))
    return found | _linked_inputs(tx, claims, plans)


def _by_owner(plan: _Plan, payloads: Mapping[str, _Payload]) -> defaultdict[str | None, dict[str, _Payload]]:
    """The payloads of each job and of those that it spawned."""
    found: defaultdict[str | None, dict[str, _Payload]] = defaultdict(dict)
    names = plan.names
    for name, payload in payloads.items():
        found[wf.owner(names, name)][name] = payload
    return found


def _of_needs(
    claim: Claim, plan: _Plan, owned: Mapping[str | None, dict[str, _Payload]]
) -> dict[str, _Payload]:
    """What a claim gets of the jobs that it needs."""
    absent = _Payload(claim.ref, None, 0, failed=True) if claim.name in plan.stages else None
    found: dict[str, _Payload] = {}
    for need in dict.fromkeys(plan.needs[claim.name or ""]):
        of_need = owned.get(need) or ({need: absent} if absent is not None else {})
        found |= {plan.shown(need, name): payload for name, payload in of_need.items()}
    return found


def _linked_inputs(
    tx: Tx, claims: Sequence[Claim], plans: Mapping[bytes, _Plan]
) -> dict[AttemptRef, dict[str, _Payload]]:
    """The same for jobs of large graphs, whose needs are rows."""
    refs: dict[bytes, AttemptRef] = {}
    for claim in claims:
        plan = plans.get(claim.request_id or b"")
        if plan is not None and plan.linked and claim.name not in plan.needs:
            refs[claim.id] = claim.ref
    found: defaultdict[AttemptRef, dict[str, _Payload]] = defaultdict(dict)
    if not refs:
        return found
    shown = "j.name, j.id, j.attempt, j.payload_type, COALESCE(LENGTH(j.payload), 0), j.status"
    for job_id, name, *row in links.inputs(tx, list(refs), shown):
        found[refs[job_id]][columns.lenient(name) or ""] = _payload(*row)
    return found


def _payload(job_id: bytes, attempt: int, kind: bytes | None, size: int, status: bytes) -> _Payload:
    failed = status != b"completed"
    return _Payload(AttemptRef(job_id, attempt), columns.lenient(kind), 0 if failed else size, failed)


def _plan(context: _Context) -> _Plan:
    """What the jobs of a graph need; nothing if the graph cannot be read."""
    if context.steps is None:
        return _Plan({}, frozenset())
    try:
        graph = wf.of_cycle(workflows.graph(context.steps), context.cycle)
    except InvalidValue:
        return _Plan({}, frozenset())  # the request fails when its next job ends
    given = workflows.graph(context.steps).final
    return _Plan(
        {job.name: job.needs for job in graph.all_jobs},
        frozenset(job.name for job in graph.final if not job.needs),
        graph.linked,
        frozenset(job.name for job in graph.then + graph.final),
        {job.name: first.name for job, first in zip(graph.final, given, strict=True)},
    )


def _payloads(tx: Tx, ids: Sequence[bytes]) -> defaultdict[bytes, dict[str, _Payload]]:
    found: defaultdict[bytes, dict[str, _Payload]] = defaultdict(dict)
    for part in chunks(ids):
        for request_id, name, job_id, attempt, kind, size, status in tx.query(
            "SELECT request_id, name, id, attempt, payload_type, COALESCE(LENGTH(payload), 0), status"
            f" FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
            f" WHERE request_id IN ({marks(part)}) AND status IN ('completed','failure','cancelled')"
            " AND name IS NOT NULL",
            part,
        ):
            found[request_id][columns.lenient(name) or ""] = _payload(job_id, attempt, kind, size, status)
    return found


def _refused(claim: Claim, context: _Context | None, size: int) -> Outcome | None:
    if context is None:
        return failed(claim, "Its request does not exist; enqueue it without one.")
    if context.status in wf.REQUEST_ENDED:
        return cancelled(claim, workflows.REQUEST_OVER)
    if size > MAX_JOB_BYTES:
        return failed(
            claim,
            f"The request's params and extras and the payloads that it needs have {size} bytes,"
            f" {MAX_JOB_BYTES} are allowed; hand on a reference instead of the data.",
        )
    return None


def _filled(
    tx: Tx, claims: Sequence[Claim], needed: Mapping[AttemptRef, Mapping[str, _Payload]]
) -> list[Claim]:
    handed: dict[bytes, Row] = {}
    for part in chunks(sorted({c.request_id for c in claims if c.request_id is not None})):
        for row in tx.query(
            f"SELECT id, workflow, params, extras FROM workerd_requests WHERE id IN ({marks(part)})", part
        ):
            handed[row[0]] = row
    wanted = {p.ref: p for c in claims for p in needed.get(c.ref, {}).values()}
    contents = _contents(tx, [p for p in wanted.values() if p.size and not p.failed])
    filled = []
    for claim in claims:
        _, workflow, params, extras = handed.get(claim.request_id or b"", (None, None, None, None))
        payloads = needed.get(claim.ref, {})
        needs = {
            name: b"null" if p.failed else contents.get(p.ref) or (b'""' if p.type == "bytes" else b"null")
            for name, p in payloads.items()
        }
        filled.append(
            msgspec.structs.replace(
                claim,
                workflow=columns.lenient(workflow),
                params=params,
                extras=extras,
                needs=needs,
                failed=[name for name, p in payloads.items() if p.failed] or None,
            )
        )
    return filled


def _contents(tx: Tx, payloads: Sequence[_Payload]) -> dict[AttemptRef, bytes]:
    """Payloads as JSON; bytes as base64 text, which msgspec decodes where a handler wants bytes."""
    kinds = {p.ref: p.type for p in payloads}
    found: dict[AttemptRef, bytes] = {}
    for part in chunks(list(kinds)):
        for job_id, attempt, content in tx.query(
            f"SELECT id, attempt, payload FROM workerd_jobs WHERE {columns.keys(part)}"
        ):
            ref = AttemptRef(job_id, attempt)
            found[ref] = msgspec.json.encode(content) if kinds[ref] == "bytes" else content
    return found


def _release(tx: Tx, surplus: Sequence[AttemptRef]) -> None:
    """Undo the claims that do not fit into this batch."""
    if surplus:
        tx.execute(
            "UPDATE workerd_jobs SET status = 'new', node_id = NULL, node = NULL, claimed_at = NULL"
            f" WHERE {columns.keys(surplus)}"
        )
