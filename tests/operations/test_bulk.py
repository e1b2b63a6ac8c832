"""Cancel and retry of all jobs that a filter means, in slices, on both engines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import storing as s
from workerd.clock import SECOND, now_us, to_text
from workerd.errors import InvalidValue, StoreAway
from workerd.job import COOLER_KEY, Status, id_text
from workerd.job_filter import JobFilter
from workerd.operations import audit, bulk
from workerd.operations.actor import Actor
from workerd.operations.bulk import Act, Search
from workerd.operations.rules import Rules
from workerd.redaction import Redaction
from workerd.store import columns, job_control, job_selection, jobs
from workerd.store.base import Store, Tx

ANN = Actor("ann", "http")


def found(store: Store, act: Act, *, limit: int | None = None, **wanted: Any) -> Search:
    search = Search(act, JobFilter(**wanted), limit=limit)
    search.finish(store.read)
    return search


def change(store: Store, search: Search, **more: Any) -> int:
    return max(bulk.change_all(store.run, ANN, search, **more), default=0)


def failed(store: Store, count: int, handler: str = "h", **given: Any) -> list[bytes]:
    """Jobs that have failed."""
    new = [jobs.NewJob(handler=handler, **given) for _ in range(count)]
    made = store.run(lambda tx: jobs.insert(tx, new))
    for claim in iter(lambda: s.claims(store, handler, 500), []):
        s.close(store, [s.outcome(one, Status.FAILURE, error="503") for one in claim])
    return [one.id for one in made]


def states(store: Store, ids: list[bytes]) -> list[tuple[str, int]]:
    """Status and attempt of the newest rows."""
    rows = store.read(
        lambda tx: tx.query(
            "SELECT id, status, attempt FROM workerd_jobs WHERE status <> 'retry' AND id IN ("
            + columns.marks(ids)
            + ")",
            ids,
        )
    )
    found = {job_id: (columns.text(status), attempt) for job_id, status, attempt in rows}
    return [found[job_id] for job_id in ids]


def test_failed_jobs_are_retried_in_slices(store: Store) -> None:
    """1,200 in three transactions, each with a row in the audit that names its jobs; a second call: none."""
    made, other = failed(store, 1200), failed(store, 1, "other")
    search = found(store, Act.RETRY, handler="h")
    assert search.matched == len(search.found) == 1200
    assert list(bulk.change_all(store.run, ANN, search)) == [500, 1000, 1200]
    assert set(states(store, made)) == {("new", 2)}
    assert states(store, other) == [("failure", 1)]
    acts = store.read(audit.list_).audit
    assert [(a["actor"], a["action"], a["target"]) for a in acts] == [("ann", "retry", "h")] * 3
    assert {a["detail"]["filter"]["handler"] for a in acts} == {"h"}
    assert sorted(one for a in acts for one in a["detail"]["ids"]) == sorted(map(id_text, made))
    assert max(len(a["detail"]["ids"]) for a in acts) == 500
    assert found(store, Act.RETRY, handler="h").matched == 0
    assert change(store, search) == 0
    assert len(store.read(audit.list_).audit) == 3


def test_a_limit_takes_the_newest(store: Store) -> None:
    """`matched` counts all; those with the newest due times are found first."""
    made = [s.enqueue(store, "h", delay=(n + 1) * SECOND) for n in range(5)]
    search = found(store, Act.CANCEL, handler="h", limit=2)
    assert (search.matched, [ref.id for ref in search.found]) == (5, made[:2:-1])
    assert change(store, search) == 2
    assert [state for state, _ in states(store, made)] == ["scheduled"] * 3 + ["cancelled"] * 2


def test_live_jobs_are_cancelled_or_asked(store: Store) -> None:
    """Waiting ones end, running ones are asked once; what has ended is not meant."""
    done = s.enqueue(store, "h")
    s.finish(store, "h")
    running = s.enqueue(store, "h")
    s.claims(store, "h")
    waiting, later = s.enqueue(store, "h"), s.enqueue(store, "h", delay=SECOND)
    search = found(store, Act.CANCEL, handler="h")
    assert search.matched == 3
    assert change(store, search) == 3
    assert [state for state, _ in states(store, [done, running, waiting, later])] == [
        "completed", "inprogress", "cancelled", "cancelled",
    ]  # fmt: skip
    assert s.job(store, running).row.cancel_requested_at is not None
    assert found(store, Act.CANCEL, handler="h").matched == 1
    assert change(store, found(store, Act.CANCEL, handler="h")) == 0


def test_an_attempt_made_meanwhile_is_left_alone(store: Store) -> None:
    """What was retried and failed again, claimed or ended since it was found is not touched."""
    again, claimed, ended = failed(store, 1)[0], s.enqueue(store, "c"), s.enqueue(store, "e")
    retries = found(store, Act.RETRY, status=Status.FAILURE)
    cancels = found(store, Act.CANCEL, status=Status.NEW)
    store.run(lambda tx: job_control.retry(tx, again))
    s.finish(store, "h", Status.FAILURE, error="503")
    s.claims(store, "c")
    s.finish(store, "e")
    assert (change(store, retries), change(store, cancels)) == (0, 0)
    assert states(store, [again, claimed, ended]) == [("failure", 2), ("inprogress", 1), ("completed", 1)]
    assert not store.read(audit.list_).audit


def test_what_an_edit_changed_is_left_alone(store: Store) -> None:
    """A job that is in another group by now is not one of those that were meant."""
    moved, stays = (s.enqueue(store, "h", group_key="a") for _ in range(2))
    search = found(store, Act.CANCEL, group="a")
    s.sql(store, "UPDATE workerd_jobs SET group_key = 'b' WHERE id = %s", moved)
    assert (search.matched, change(store, search)) == (2, 1)
    assert [state for state, _ in states(store, [moved, stays])] == ["new", "cancelled"]


def test_every_filter_narrows(store: Store) -> None:
    """Each alone finds its job; those without an index are looked up among the others."""
    fp = b"12345678"
    made = failed(store, 3)
    marked = failed(store, 1, "m", group_key="g", meta=b'{"tenant": 7}')[0]
    s.sql(store, "UPDATE workerd_jobs SET fingerprint = %s, reason = 'oom' WHERE id = %s", fp, marked)
    old = failed(store, 1, "o")[0]
    long_ago = to_text(now_us() - 86_400 * SECOND)
    s.sql(
        store, "UPDATE workerd_jobs SET created_at = %s, run_at = %s WHERE id = %s", long_ago, long_ago, old
    )
    hour_ago = now_us() - 3600 * SECOND
    for wanted in ({"error": fp}, {"reason": "oom"}, {"group": "g"}, {"meta": {"tenant": "7"}}):
        assert [ref.id for ref in found(store, Act.RETRY, **wanted).found] == [marked], wanted
    assert [ref.id for ref in found(store, Act.RETRY, until=hour_ago).found] == [old]
    recent = {ref.id for ref in found(store, Act.RETRY, since=hour_ago).found}
    assert recent == {*made, marked}
    assert found(store, Act.RETRY, handler="none").matched == 0
    assert found(store, Act.RETRY, status=Status.COMPLETED, handler="h").matched == 0


def test_the_jobs_of_a_request(store: Store) -> None:
    """Cancel ends the request once for all; retry reopens it, and counts what it repeats beside."""
    flow = s.workflow("w", "a", "b", "c<a,b")
    request = s.submit(store, flow)
    other = s.submit(store, flow)
    assert change(store, found(store, Act.CANCEL, request=request)) == 2
    assert s.states(store, request)[0] == "cancelled"
    assert s.states(store, other)[0] == "inprogress"
    search = found(store, Act.RETRY, request=request, status=Status.CANCELLED)
    assert "reopened" in str(store.read(search.reopening_note))
    assert (search.matched, change(store, search)) == (2, 2)
    assert s.states(store, request) == ("inprogress", {"a": "new", "b": "new"})
    s.finish(store, "a")
    s.finish(store, "b")
    s.finish(store, "c")
    assert s.states(store, request)[0] == "completed"


def test_what_waits_for_another_is_not_made_due(store: Store) -> None:
    """A follower, a wait of a request and a job of an incomplete batch are scheduled, and stay so."""
    plain = s.enqueue(store, "h", delay=3600 * SECOND)
    follower = s.enqueue(store, "h", delay=3600 * SECOND, unique_key="~next:k")
    wait = s.enqueue(store, "~wait", delay=3600 * SECOND)
    search = found(store, Act.RETRY, status=Status.SCHEDULED)
    assert change(store, search) == 1
    assert [state for state, _ in states(store, [plain, follower, wait])] == ["new", "scheduled", "scheduled"]


def test_a_unique_key_that_is_held_leaves_its_job(store: Store) -> None:
    """The others of the slice are retried; a recurring handler's run is not repeated beside the next one."""
    held = failed(store, 1, unique_key="k")[0]
    holder = s.enqueue(store, "h", unique_key="k", delay=SECOND)
    free = failed(store, 2)
    recurring = failed(store, 1, "r", unique_key=COOLER_KEY)[0]
    s.enqueue(store, "r", unique_key=COOLER_KEY, delay=SECOND)
    search = found(store, Act.RETRY, status=Status.FAILURE)
    assert (search.matched, change(store, search)) == (4, 2)
    assert states(store, [held, recurring]) == [("failure", 1)] * 2
    assert {state for state, _ in states(store, free)} == {"new"}
    assert states(store, [holder]) == [("scheduled", 1)]


def test_saved_state_is_kept_unless_fresh(store: Store) -> None:
    """As a retry of one job."""
    kept, dropped = failed(store, 1, "a")[0], failed(store, 1, "b")[0]
    s.sql(store, "UPDATE workerd_jobs SET state = %s", b'{"n": 1}')
    change(store, found(store, Act.RETRY, handler="a"))
    change(store, found(store, Act.RETRY, handler="b"), fresh=True)
    assert [s.job(store, one).row.state for one in (kept, dropped)] == [b'{"n": 1}', None]


@pytest.mark.parametrize("act", Act)
def test_callers_at_the_same_time_share_the_work(
    act: Act, store: Store, store_url: str, opened: Callable[[str], Store]
) -> None:
    """Each job is changed once, by one of them; together they have changed all."""
    made = failed(store, 900) if act is Act.RETRY else [s.enqueue(store, "h") for _ in range(900)]
    searches = [found(store, act, handler="h") for _ in range(3)]
    done: list[int] = []

    def work(search: Search, connection: Store) -> None:
        count = 0
        for refs in search.slices():
            while True:
                try:
                    count += connection.run(
                        lambda tx, refs=refs: bulk.change(tx, ANN, search, refs), retry_for_s=60
                    )
                    break
                except StoreAway:
                    continue
        done.append(count)

    threads = [threading.Thread(target=work, args=(one, opened(store_url))) for one in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 900
    expected = ("new", 2) if act is Act.RETRY else ("cancelled", 1)
    assert set(states(store, made)) == {expected}
    named = [
        one for a in store.read(lambda tx: audit.list_(tx, limit=500)).audit for one in a["detail"]["ids"]
    ]
    assert sorted(named) == sorted(map(id_text, made))


def test_a_search_goes_through_all_ranges(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several statuses, priorities and equal due times, in slices of a few rows: each job once."""
    monkeypatch.setattr(job_selection, "SLICE_ROWS", 3)
    made = store.run(
        lambda tx: jobs.insert(tx, [jobs.NewJob(handler="ab"[n % 2], priority=n % 3) for n in range(40)])
    )
    later = [s.enqueue(store, "a", delay=(n % 4 + 1) * SECOND) for n in range(10)]
    s.claims(store, "b", 5)
    search = found(store, Act.CANCEL, since=now_us() - 3600 * SECOND)
    assert sorted(ref.id for ref in search.found) == sorted([*(one.id for one in made), *later])
    members = [s.enqueue(store, "q", request_id=b"r" * 16) for _ in range(7)]
    assert sorted(ref.id for ref in found(store, Act.CANCEL, request=b"r" * 16).found) == sorted(members)


def test_redacted_meta_is_not_found_out(store: Store) -> None:
    """A filter sees meta as a list shows it."""
    s.enqueue(store, "h", meta=b'{"card": "4711"}')

    class Hidden:
        def of(self, tx: Tx, handler: str) -> Redaction:
            return Redaction(["card"])

        def of_workflow(self, tx: Tx, workflow: str, handlers: Any) -> Redaction:
            return Redaction(["card"])

    rules: Rules = Hidden()
    counts = []
    for value in ("4711", "[redacted]"):
        search = Search(Act.CANCEL, JobFilter(meta={"card": value}), rules=rules)
        search.finish(store.read)
        counts.append(search.matched)
    assert counts == [0, 1]


@pytest.mark.parametrize(
    ("act", "wanted", "words"),
    [
        (Act.CANCEL, {}, "at least one"),
        (Act.RETRY, {"meta": {}}, "at least one"),
        (Act.CANCEL, {"status": Status.COMPLETED}, "to cancel, got completed"),
        (Act.RETRY, {"status": Status.INPROGRESS}, "to retry, got inprogress"),
        (Act.RETRY, {"handler": ""}, "handler: expected 1 to"),
        (Act.RETRY, {"meta": {str(n): "" for n in range(21)}}, "at most 20 keys"),
        (Act.RETRY, {"meta": {"a": "x" * 10_001}}, "meta: expected"),
    ],
)
def test_a_wrong_filter_is_refused(act: Act, wanted: dict[str, Any], words: str) -> None:
    """Before anything is read."""
    with pytest.raises(InvalidValue, match=words):
        Search(act, JobFilter(**wanted))
