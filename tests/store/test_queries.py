"""Looking at jobs: one, counts; and that nothing reads a big table whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.support import storing as s
from workerd import documents
from workerd.clock import SECOND, from_rfc3339
from workerd.errors import NotFound
from workerd.job import Status, id_text
from workerd.job_filter import JobFilter
from workerd.redaction import NOTHING
from workerd.store import handlers, job_lists, queries
from workerd.store.base import Store, Tx


def test_a_job_is_shown_with_its_attempts(store: Store) -> None:
    """The document has the state, the payload and every attempt, oldest first."""
    job_id = s.enqueue(store, "mail", vars=b'{"to":"x"}', meta=b'{"tenant":7}', unique_key="k")
    s.finish(store, "mail", Status.RETRY, error="503")
    s.finish(store, "mail", payload=b"[1,2]", payload_type="json")
    shown = documents.job(s.job(store, job_id), NOTHING)
    assert shown["id"] == id_text(job_id)
    assert (shown["status"], shown["attempt"], shown["complete"], shown["success"]) == (
        "completed",
        2,
        True,
        True,
    )
    assert (shown["vars"], shown["meta"], shown["payload"]) == ({"to": "x"}, {"tenant": 7}, [1, 2])
    assert [(a["attempt"], a["status"], a["error"]) for a in shown["attempts"]] == [
        (1, "retry", "503"),
        (2, "completed", None),
    ]
    times = [shown[name] for name in ("created_at", "claimed_at", "finished_at", "ingested_at")]
    assert all(len(t) == 27 and t.endswith("Z") for t in times if t is not None)
    assert from_rfc3339(shown["claimed_at"]) >= from_rfc3339(shown["created_at"])


def test_bytes_are_shown_in_base64(store: Store) -> None:
    """A payload that is no JSON does not break the document."""
    job_id = s.enqueue(store, "mail")
    s.finish(store, "mail", payload=b"\x00\xff", payload_type="bytes")
    shown = documents.job(s.job(store, job_id), NOTHING)
    assert (shown["payload"], shown["payload_base64"]) == (None, "AP8=")
    assert store.read(lambda tx: queries.payload(tx, job_id)) == (b"\x00\xff", "bytes")


def test_a_missing_row_is_reported(store: Store) -> None:
    """An unknown id, and a payload before there is one."""
    for question in (queries.get, queries.ended, queries.payload):
        with pytest.raises(NotFound, match="Job not found"):
            store.read(lambda tx, question=question: question(tx, b"x" * 16))
    job_id = s.enqueue(store, "mail")
    with pytest.raises(NotFound, match="nothing yet"):
        store.read(lambda tx: queries.payload(tx, job_id))
    assert store.read(lambda tx: queries.ended(tx, job_id)) is False
    s.finish(store, "mail")
    assert store.read(lambda tx: queries.ended(tx, job_id)) is True


def test_counts_are_capped_and_tell_the_oldest(store: Store) -> None:
    """Each handler and status with its number, and since when the oldest `new` one waits."""
    for n in range(7):
        s.enqueue(store, "h", priority=n % 2)
    oldest = s.enqueue(store, "h", priority=9, run_at=from_rfc3339("2026-01-01T00:00:00Z"))
    s.enqueue(store, "h", delay=3600 * SECOND)
    found = {c.status: c for c in store.read(lambda tx: queries.counts(tx, ["h", "none"], cap=5))}
    assert {state: c.count for state, c in found.items()} == {Status.NEW: 5, Status.SCHEDULED: 1}
    assert found[Status.NEW].oldest == s.job(store, oldest).row.run_at
    assert store.read(lambda tx: queries.waiting(tx, "h", 100)) == 9
    assert store.read(lambda tx: queries.waiting(tx, "h", 4)) == 4


def fill(store: Store, rows: int) -> None:
    """Many rows of a busy handler, ended and waiting, and a few of a rare one."""
    number = "a.n + 10 * b.n + 100 * c.n + 1000 * d.n"
    digits = " UNION ALL ".join(f"SELECT {n} AS n" for n in range(10))
    if store.dialect.name == "sqlite":
        new_id, at = "randomblob(16)", f"datetime('2026-01-01', '+' || ({number}) || ' seconds') || '.000000'"
    else:
        new_id = "LEFT(UNHEX(SHA2(UUID(), 256)), 16)"
        at = f"TIMESTAMP('2026-01-01') + INTERVAL ({number}) SECOND"
    for status in ("completed", "new", "failure"):
        for _ in range(rows // 30_000):
            s.sql(
                store,
                "INSERT INTO workerd_jobs (id, handler, status, run_at, created_at)"
                f" SELECT {new_id}, 'busy', '{status}', {at}, {at}"
                f" FROM ({digits}) a, ({digits}) b, ({digits}) c, ({digits}) d",
            )


def measured(store: Store, question: Callable[[Tx], object]) -> int:
    """Rows that the server read for it, or tens of steps of SQLite's machine."""
    if store.dialect.name == "sqlite":
        steps = itertools.count()
        link = store._connected()._link  # type: ignore[attr-defined]
        link.set_progress_handler(lambda: next(steps) < 0, 10)
        store.read(question)
        return next(steps)

    def counted(tx: Tx) -> int:
        before = rows_read(tx)
        question(tx)
        return rows_read(tx) - before

    return store.read(counted)


def rows_read(tx: Tx) -> int:
    return sum(int(number) for _, number in tx.query("SHOW SESSION STATUS LIKE 'Handler_read%'"))


def test_nothing_reads_a_big_table_whole(store: Store) -> None:
    """With 90,000 rows every question touches some hundreds of them at most."""
    fill(store, 90_000)
    rare = s.enqueue(store, "rare")
    position = f"{from_rfc3339('2026-01-01T01:00:00Z')}.{'80' * 16}"
    questions: dict[str, Callable[[Tx], object]] = {
        "list": lambda tx: job_lists.list_(tx, JobFilter(), limit=50),
        "page": lambda tx: job_lists.list_(tx, JobFilter(), limit=50, after=position),
        "handler": lambda tx: job_lists.list_(tx, JobFilter("busy"), limit=50),
        "rare": lambda tx: job_lists.list_(tx, JobFilter("rare"), limit=50),
        "since": lambda tx: job_lists.list_(
            tx, JobFilter(since=from_rfc3339("2026-01-02T00:00:00Z")), limit=50
        ),
        "status": lambda tx: job_lists.list_(tx, JobFilter(status=Status.FAILURE), limit=50),
        "counts": lambda tx: queries.counts(tx, ["busy", "rare"], cap=100),
        "waiting": lambda tx: queries.waiting(tx, "busy", 100),
        "get": lambda tx: queries.get(tx, rare),
        "handlers": handlers.list_,
    }
    touched = {name: measured(store, question) for name, question in questions.items()}
    assert max(touched.values()) < 3000, touched
