"""Helpers that drive a store as the daemon's roles do: enqueue, claim, close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from workerd.config.schedule_config import ScheduleConfig
from workerd.config.workflow_config import WorkflowConfig, WorkflowJob
from workerd.ingester import writer
from workerd.job import Claim, Status
from workerd.outcome import NextAttempt, Outcome, Reason
from workerd.store import claims as store_claims
from workerd.store import jobs, queries, requests, slot_numbers
from workerd.store.base import Store
from workerd.store.columns import JobRow, RequestRow
from workerd.store.dialect import Dialect

NODE = store_claims.NodeIdent(b"n" * 16, "one")


def enqueue(store: Store, handler: str, **given: Any) -> bytes:
    return store.run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler=handler, **given)]))[0].id


def claims(store: Store, handler: str, limit: int = 100, node: store_claims.NodeIdent = NODE) -> list[Claim]:
    return store.run(lambda tx: store_claims.claim(tx, handler, limit, node)).claims


def outcome(
    claim: Claim, status: Status = Status.COMPLETED, reason: Reason | None = None, **given: Any
) -> Outcome:
    given.setdefault("limited", claim.limited)
    usual = {Status.COMPLETED: Reason.OK, Status.CANCELLED: Reason.CANCELLED, Status.RETRY: Reason.RETRY}
    if status is Status.RETRY:
        given.setdefault("next", NextAttempt(0, claim.failures + 1, claim.crashes, claim.losses))
    return Outcome(
        id=claim.id,
        attempt=claim.attempt,
        claimed_at=claim.claimed_at,
        handler=claim.handler,
        status=status,
        reason=reason or usual.get(status, Reason.ERROR),
        success=status is Status.COMPLETED,
        request_id=claim.request_id,
        step=claim.step,
        name=claim.name,
        unique_key=claim.unique_key,
        **given,
    )


def close(store: Store, outcomes: Sequence[Outcome], node: store_claims.NodeIdent = NODE) -> int:
    return len(store.run(lambda tx: writer.close(tx, outcomes, node.id)).refs)


def finish(store: Store, handler: str, status: Status = Status.COMPLETED, **given: Any) -> list[Claim]:
    """Claim all waiting jobs of the handler and close them with the same outcome."""
    taken = claims(store, handler)
    assert close(store, [outcome(claim, status, **given) for claim in taken]) == len(taken)
    return taken


def job(store: Store, job_id: bytes) -> queries.StoredJob:
    return store.read(lambda tx: queries.get(tx, job_id))


def status(store: Store, job_id: bytes) -> str:
    return job(store, job_id).row.status


def request(store: Store, request_id: bytes) -> tuple[RequestRow, dict[str | None, JobRow]]:
    row, found = store.read(lambda tx: requests.get(tx, request_id))
    return row, {one.name: one for one in found}


def states(store: Store, request_id: bytes) -> tuple[str, dict[str | None, str]]:
    row, found = request(store, request_id)
    return row.status, {name: one.status for name, one in found.items()}


def workflow(name: str, *jobs_: str, schedule: ScheduleConfig | None = None) -> WorkflowConfig:
    """Build a workflow from jobs as `name` or `name<need,need`; each runs the handler of its name."""
    made: dict[str, WorkflowJob] = {}
    for text in jobs_:
        job_name, _, needs = text.partition("<")
        needed = tuple(needs.split(",")) if needs else ()
        step = max((made[n].step + 1 for n in needed), default=0)
        made[job_name] = WorkflowJob(name=job_name, handler=job_name, needs=needed, step=step)
    return WorkflowConfig(name=name, jobs=tuple(made.values()), schedule=schedule or ScheduleConfig())


def submit(store: Store, of: WorkflowConfig, params: bytes = b"{}") -> bytes:
    """Submit a request and pick it up; return its id."""
    made = store.run(lambda tx: requests.submit(tx, of.name, params))
    store.run(lambda tx: requests.pickup(tx, {of.name: of}, 100))
    return made.id


def sql(store: Store, statement: str, *params: object) -> None:
    store.run(lambda tx: tx.execute(statement, params))


def value(store: Store, query: str, *params: object) -> Any:
    row = store.read(lambda tx: tx.one(query, params))
    return None if row is None else row[0]


Opening = Callable[..., Store]


def note_reads_of_all_slots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The limits of which all slots are asked for from now on, once for each time."""
    names: list[str] = []
    query = slot_numbers.query

    def noted(words: Dialect, name: str, *, by_group: bool) -> tuple[str, tuple[str]]:
        names.append(name)
        return query(words, name, by_group=by_group)

    monkeypatch.setattr(slot_numbers, "query", noted)
    return names
