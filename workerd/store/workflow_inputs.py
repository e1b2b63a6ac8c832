"""The inputs of a claimed job of a request: params, extras, and payloads of the jobs it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from workerd import workflow as wf
from workerd.errors import InvalidValue
from workerd.job import AttemptRef, Claim
from workerd.outcome import Outcome, cancelled, failed
from workerd.store import columns, workflows
from workerd.store.base import Row, Tx
from workerd.store.columns import chunks, marks

MAX_BATCH_BYTES = 8 << 20
"""Bytes of inputs in one claim; jobs beyond it stay `new`."""
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


class _Payload(NamedTuple):
    ref: AttemptRef
    type: str | None
    size: int


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


def _contexts(tx: Tx, ids: Sequence[bytes]) -> dict[bytes, _Context]:
    size = tx.dialect.byte_length
    found: dict[bytes, _Context] = {}
    for part in chunks(ids):
        for row in tx.query(
            f"SELECT id, workflow, status, {size('params')} + {size('extras')}, steps"
            f" FROM workerd_requests WHERE id IN ({marks(part)})",
            part,
        ):
            found[row[0]] = _Context(columns.lenient(row[1]) or "", columns.lenient(row[2]) or "", *row[3:])
    return found


def _needed(
    tx: Tx, claims: Sequence[Claim], contexts: dict[bytes, _Context]
) -> dict[AttemptRef, dict[str, _Payload]]:
    """The payloads, by name, of the jobs that each claim needs and of those they spawned."""
    needs = {request_id: _needs(context.steps) for request_id, context in contexts.items()}
    wanted = [c for c in claims if c.request_id is not None and needs.get(c.request_id, {}).get(c.name or "")]
    there = _payloads(tx, sorted({c.request_id for c in wanted if c.request_id is not None}))
    by_owner: dict[bytes, defaultdict[str | None, dict[str, _Payload]]] = {}
    for request_id, payloads in there.items():
        of_request = by_owner[request_id] = defaultdict(dict)
        for name, payload in payloads.items():
            of_request[wf.owner(needs[request_id], name)][name] = payload
    found: dict[AttemptRef, dict[str, _Payload]] = {}
    for claim in wanted:
        request_id = claim.request_id or b""
        owned: Mapping[str | None, dict[str, _Payload]] = by_owner.get(request_id, {})
        found[claim.ref] = {
            name: payload
            for need in dict.fromkeys(needs[request_id][claim.name or ""])
            for name, payload in owned.get(need, {}).items()
        }
    return found


def _needs(steps: bytes | None) -> dict[str, tuple[str, ...]]:
    """What each job of a graph needs, by name; none if the graph cannot be read."""
    if steps is None:
        return {}
    try:
        return {job.name: job.needs for job in workflows.graph(steps).jobs}
    except InvalidValue:
        return {}  # the request fails when its next job ends


def _payloads(tx: Tx, ids: Sequence[bytes]) -> defaultdict[bytes, dict[str, _Payload]]:
    found: defaultdict[bytes, dict[str, _Payload]] = defaultdict(dict)
    for part in chunks(ids):
        for request_id, name, job_id, attempt, kind, size in tx.query(
            "SELECT request_id, name, id, attempt, payload_type, COALESCE(LENGTH(payload), 0)"
            f" FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
            f" WHERE request_id IN ({marks(part)}) AND status = 'completed' AND name IS NOT NULL",
            part,
        ):
            found[request_id][columns.lenient(name) or ""] = _Payload(
                AttemptRef(job_id, attempt), columns.lenient(kind), size
            )
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
    contents = _contents(tx, [p for p in wanted.values() if p.size])
    filled = []
    for claim in claims:
        _, workflow, params, extras = handed.get(claim.request_id or b"", (None, None, None, None))
        needs = {
            name: contents.get(p.ref) or (b'""' if p.type == "bytes" else b"null")
            for name, p in needed.get(claim.ref, {}).items()
        }
        filled.append(
            msgspec.structs.replace(
                claim, workflow=columns.lenient(workflow), params=params, extras=extras, needs=needs
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
