"""Documents have the keys of the types that describe them, in the order of the HTTP contract."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from tests.support import storing
from workerd import documents
from workerd.document_types import Attempt, Document, Handler, Job, Node, Request, Schedule
from workerd.job import Status
from workerd.redaction import NOTHING
from workerd.store import handlers, nodes, requests, schedules
from workerd.store.base import Store
from workerd.store.queries import StoredJob
from workerd.workflow import RequestStatus

JOB_KEYS = (
    "id", "handler", "status", "reason", "attempt", "priority", "vars", "run_at", "expires_at", "unique_key",
    "group",
    "request_id", "step", "name", "meta", "complete", "success", "error", "error_class",
    "fingerprint", "progress", "note", "created_at",
    "claimed_at", "started_at", "finished_at", "ingested_at", "run_us", "cpu_us", "max_rss_kib",
    "exit_signal", "exit_code", "stack", "node", "pid",
)  # fmt: skip
ATTEMPT_KEYS = (
    "attempt", "status", "reason", "node", "pid", "error", "error_class", "fingerprint", "stack",
    "exit_signal", "exit_code",
    "claimed_at",
    "started_at", "finished_at", "ingested_at", "run_us", "cpu_us", "max_rss_kib",
)  # fmt: skip


def job_of(document: Document) -> Job:
    """As a client decodes it."""
    return msgspec.convert(msgspec.json.decode(msgspec.json.encode(document)), Job)


def test_a_job_and_its_attempts_have_the_keys_of_the_contract(store: Store) -> None:
    """A job in a list has neither payload nor attempts."""
    job_id = storing.enqueue(store, "mail", vars=b'{"a": 1}', meta=b"[2]")
    storing.finish(store, "mail", payload=b"42", payload_type="json")
    found = storing.job(store, job_id)
    document = documents.job(found, NOTHING)
    assert tuple(document) == (*JOB_KEYS, "state", "payload", "payload_base64", "attempts")
    assert tuple(documents.job(found.row, NOTHING)) == JOB_KEYS
    assert tuple(document["attempts"][0]) == ATTEMPT_KEYS
    assert (document["vars"], document["meta"], document["complete"]) == ({"a": 1}, [2], True)
    job = job_of(document)
    assert (job.result, job.attempts[0].status, job.created_at is not None) == (42, "completed", True)
    assert len(document["created_at"]) == len("2026-01-31T12:00:00.000000Z")


@pytest.mark.parametrize(
    ("payload", "kind", "result"),
    [(None, None, None), (b"[1]", "json", [1]), (b"\xff", "bytes", b"\xff"), (b"{", "json", "{")],
)
def test_a_payload_is_shown_by_its_type(
    store: Store, payload: bytes | None, kind: str | None, result: object
) -> None:
    """JSON as its value, bytes in base64; invalid JSON as text."""
    job_id = storing.enqueue(store, "mail")
    storing.finish(store, "mail")
    found = storing.job(store, job_id)
    row = msgspec.structs.replace(found.row, payload=payload, payload_type=kind)
    assert job_of(documents.job(StoredJob(row=row, attempts=found.attempts), NOTHING)).result == result


def test_every_other_document_has_the_fields_of_its_type(store: Store) -> None:
    """And decodes as that type."""
    node = nodes.NodeRecord(id=storing.NODE.id, name="one")
    store.run(lambda tx: nodes.register(tx, node, 60.0))
    store.run(lambda tx: handlers.seen(tx, "mail", b'{"params": []}', "one"))
    request_id = storing.submit(store, storing.workflow("ship", "mail"))
    row, jobs = store.read(lambda tx: requests.get(tx, request_id))
    cron = schedules.ScheduleRow(
        name="beat", kind="cron", expression="* * * * *", timezone="UTC",
        last_tick=1, last_job=bytes(16), paused_at=None, paused_by=None,
    )  # fmt: skip
    with_types: list[tuple[Document, type[msgspec.Struct]]] = [
        (documents.request(row, NOTHING, [(job, NOTHING) for job in jobs]), Request),
        (documents.handler(store.read(handlers.list_)[0]), Handler),
        (documents.schedule(cron, 1_000_000), Schedule),
        (documents.node(node, 0), Node),
    ]
    for document, kind in with_types:
        assert tuple(document) == kind.__struct_fields__
        msgspec.convert(msgspec.json.decode(msgspec.json.encode(document)), kind)
    assert tuple(documents.request(row, NOTHING)) == Request.__struct_fields__[:-1]
    assert documents.schedule(cron, 1_000_000)["next_at"] == "1970-01-01T00:00:01.000000Z"


def test_statuses_of_documents_are_those_of_the_store() -> None:
    """A new status must be added to both."""
    status_types = {
        kind: {field.name: field.type for field in msgspec.structs.fields(kind)}["status"]
        for kind in (Job, Attempt, Request)
    }
    assert get_args(status_types[Job]) == get_args(status_types[Attempt]) == tuple(map(str, Status))
    assert get_args(status_types[Request]) == tuple(map(str, RequestStatus))
