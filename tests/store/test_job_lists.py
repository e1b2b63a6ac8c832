"""Lists of jobs, newest made or ended first, page by page."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.support import storing as s
from workerd import documents
from workerd.clock import SECOND, from_rfc3339, now_us, to_text
from workerd.job import Status
from workerd.job_filter import JobFilter
from workerd.redaction import NOTHING, Redaction
from workerd.store import columns, job_lists, jobs
from workerd.store.base import Store


def ids(store: Store, **filters: Any) -> list[bytes]:
    """All pages, as one."""
    found: list[bytes] = []
    after: str | None = None
    while True:
        page = store.read(partial(job_lists.list_, wanted=JobFilter(**filters), limit=3, after=after))
        assert len(page.rows) <= 3
        found += [row.id for row in page.rows]
        after = page.next
        if after is None:
            return found


def test_lists_are_newest_first_page_by_page(store: Store) -> None:
    """Each job is on exactly one page, whatever its status and priority, in the order of its time."""
    made = [s.enqueue(store, "ab"[n % 2], priority=n % 3) for n in range(10)]
    s.finish(store, "a")
    later = s.enqueue(store, "a", delay=3600 * SECOND)
    assert ids(store) == [later, *reversed(made[::2]), *reversed(made[1::2])]
    assert ids(store, handler="a") == [later, *reversed(made[::2])]
    assert ids(store, handler="b", status="new") == list(reversed(made[1::2]))
    assert ids(store, status=Status.COMPLETED) == list(reversed(made[::2]))
    assert ids(store, handler="c") == []


def test_jobs_of_one_moment_are_all_listed(store: Store) -> None:
    """A bulk insert gives many rows the same time; pages neither lose nor repeat any."""
    made = store.run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler="h") for _ in range(20)]))
    assert sorted(ids(store)) == sorted(one.id for one in made)
    assert sorted(ids(store, handler="h", status="new")) == sorted(one.id for one in made)


def test_a_failure_stands_above_what_is_due_later(store: Store) -> None:
    """The end of a job made long ago is newer than jobs made since, whenever those are due."""
    failed = s.enqueue(store, "mail")
    future = [s.enqueue(store, "mail", delay=(n + 1) * 3600 * SECOND) for n in range(5)]
    s.finish(store, "mail", Status.FAILURE, error="503")
    assert ids(store) == [failed, *reversed(future)]


def test_since_and_until_mean_when_a_job_was_made(store: Store) -> None:
    """Whenever it is due: a job for next month was made now, one due last year too."""
    january, february = from_rfc3339("2026-01-01T00:00:00Z"), from_rfc3339("2026-02-01T00:00:00Z")
    past_due = s.enqueue(store, "h", run_at=january)
    later = s.enqueue(store, "h", delay=30 * 86_400 * SECOND)
    old = s.enqueue(store, "h", delay=30 * 86_400 * SECOND)
    s.sql(store, "UPDATE workerd_jobs SET created_at = %s WHERE id = %s", to_text(january), old)
    assert ids(store, since=february) == [later, past_due]
    assert ids(store, handler="h", since=january) == [later, past_due, old]
    assert ids(store, until=february) == [old]
    assert ids(store, until=january) == []


def test_a_retry_was_made_when_its_first_attempt_was(store: Store) -> None:
    """The row of a further attempt has its own `created_at`; lists show and filter by the job's."""
    first = s.enqueue(store, "h")
    s.sql(store, "UPDATE workerd_jobs SET created_at = '2026-01-01 00:00:00.000000' WHERE id = %s", first)
    s.finish(store, "h", Status.RETRY, error="503")
    other = s.enqueue(store, "h")
    january, february = from_rfc3339("2026-01-01T00:00:00Z"), from_rfc3339("2026-02-01T00:00:00Z")
    own = s.value(store, "SELECT created_at FROM workerd_jobs WHERE id = %s AND attempt = 2", first)
    assert columns.time(own) > february
    assert ids(store) == [other, first]
    assert ids(store, since=february) == [other]
    page = store.read(partial(job_lists.list_, wanted=JobFilter(until=february)))
    assert [(row.attempt, row.created_at) for row in page.rows] == [(2, january)]
    assert s.job(store, first).row.created_at == january


def test_rows_of_other_programs_are_listed_too(store: Store) -> None:
    """Ids that are no UUIDv7, times with fewer digits, JSON that is none: shown, in the right place."""
    ours = s.enqueue(store, "h")
    sql = "INSERT INTO workerd_jobs (id, handler, created_at, vars) VALUES (%s, 'h', %s, %s)"
    s.sql(store, sql, b"\xff" * 16, "2026-01-02 00:00:00", "{")
    s.sql(store, sql, b"\xee" * 16, "2026-01-02 00:00:00", "{")
    s.sql(store, sql, b"\x00" * 16, "2026-01-02 00:00:00.5", "[]")
    assert ids(store, handler="h") == [ours, b"\x00" * 16, b"\xff" * 16, b"\xee" * 16]
    assert documents.job(s.job(store, b"\xff" * 16), NOTHING)["vars"] == "{"


def test_a_big_table_is_listed_whole_and_what_is_due_later_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the window of each status, pages still have each job once, newest due first."""
    monkeypatch.setattr(job_lists, "WINDOW_ROWS", 4)
    ended = [s.enqueue(store, "done") for _ in range(12)]
    s.finish(store, "done")
    late = s.enqueue(store, "h")
    new = [s.enqueue(store, "h", priority=n % 2) for n in range(11)]
    future = [s.enqueue(store, "h", delay=(n + 1) * 3600 * SECOND) for n in range(10)]
    s.sql(store, "UPDATE workerd_jobs SET status = 'failure', finished_at = run_at WHERE id = %s", late)
    found = ids(store)
    assert sorted(found) == sorted([*ended, late, *new, *future])
    assert found[-10:] == list(reversed(future))
    assert found[:11] == list(reversed(new))
    assert ids(store, handler="h") == [*reversed(new), late, *reversed(future)]
    assert ids(store, status="scheduled") == list(reversed(future))
    an_hour_ago = now_us() - 3600 * SECOND
    assert sorted(ids(store, since=an_hour_ago)) == sorted(found)
    foreign = [bytes([n]) + b"not a uuid v7!!" for n in range(5)]
    for job_id in foreign:
        s.enqueue(store, "h", id=job_id, delay=7200 * SECOND)
    old = "UPDATE workerd_jobs SET created_at = '2026-01-01 00:00:00.000000' WHERE id = %s"
    for job_id in future:
        s.sql(store, old, job_id)
    assert sorted(ids(store, since=an_hour_ago, status="scheduled")) == sorted(foreign)


def test_many_priorities_are_listed_in_order(store: Store) -> None:
    """A handler that uses priorities as a key of their own is listed as any other."""
    made = [s.enqueue(store, "h", priority=(n * 7) % 50) for n in range(50)]
    s.enqueue(store, "other")
    assert ids(store, handler="h") == list(reversed(made))


def test_a_page_of_large_rows_is_short(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is bounded in memory, and the cursor continues after it."""
    monkeypatch.setattr(columns, "PAGE_BYTES", 300_000)
    new = jobs.NewJob(handler="h", vars=b'{"x":"' + b"y" * 10_000 + b'"}')
    made = [one.id for one in store.run(lambda tx: jobs.insert(tx, [new] * 120))]
    page = store.read(lambda tx: job_lists.list_(tx, JobFilter(), limit=120))
    assert 0 < len(page.rows) < 60
    rest = ids(store)
    assert [row.id for row in page.rows] == rest[: len(page.rows)]
    assert sorted(rest) == sorted(made)


@pytest.mark.parametrize(
    "after",
    ["", "x", "1.2", "1." + "z" * 32, "9" * 30 + "." + "0" * 32, "-1." + "0" * 32, "1." + "0" * 32 + ".x"],
)
def test_a_cursor_that_is_none_is_refused(store: Store, after: str) -> None:
    """A cursor is what a page gave, nothing else."""
    with pytest.raises(ValueError, match="next"):
        store.read(lambda tx: job_lists.list_(tx, JobFilter(), after=after))


def test_jobs_of_many_handlers_are_listed_in_order(store: Store) -> None:
    """Also of more than are sorted one by one, of known handlers and unknown ones, on every page once."""
    made = [s.enqueue(store, f"h{n % 30:02}", priority=n % 2) for n in range(60)]
    for n in range(0, 30, 3):
        s.claims(store, f"h{n:02}", 1)  # which makes the handler known
    assert ids(store) == list(reversed(made))
    waiting = set(ids(store, status="new"))
    assert len(waiting) == 50
    assert set(made) - waiting == set(ids(store, status="inprogress"))


def test_further_conditions_are_looked_up_in_slices(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that has looked at its share ends early and goes on: each match comes once, in its order."""
    made = [
        s.enqueue(store, "ab"[n % 2], group_key=f"g{n % 4}", meta=b'{"n": %d, "to": "t%d"}' % (n % 5, n % 3))
        for n in range(60)
    ]
    assert ids(store, group="g2") == made[2::4][::-1]
    monkeypatch.setattr(job_lists, "SLICE_ROWS", 4)
    monkeypatch.setattr(job_lists, "MAX_LOOKED_ROWS", 8)
    assert ids(store, group="g2") == made[2::4][::-1]
    assert ids(store, meta={"to": "t1"}) == made[1::3][::-1]
    assert ids(store, meta={"to": "t1", "n": "4"}, handler="a") == [made[34], made[4]]
    assert ids(store, meta={"to": "t"}) == ids(store, meta={"absent": ""}) == ids(store, group="g") == []
    page = store.read(lambda tx: job_lists.list_(tx, JobFilter(group="none"), limit=3))
    assert page.rows == []
    assert page.next is not None


def test_some_thousand_matches_are_found_once_each(store: Store) -> None:
    """Over many slices, of which most rows are sorted by their due time only."""
    made = store.run(
        lambda tx: jobs.insert(
            tx, [jobs.NewJob(handler="h", group_key="ab"[n % 2], priority=n % 3) for n in range(4000)]
        )
    )
    found: list[bytes] = []
    after: str | None = None
    while True:
        page = store.read(partial(job_lists.list_, wanted=JobFilter(group="a"), limit=700, after=after))
        found += [row.id for row in page.rows]
        after = page.next
        if after is None:
            break
    assert sorted(found) == sorted(one.id for one in made[::2])


def test_jobs_are_found_by_how_they_ended_and_by_request(store: Store) -> None:
    """By reason, by the fingerprint of the error, and by the id of the request."""
    done, failed = s.enqueue(store, "done"), s.enqueue(store, "failed")
    s.finish(store, "done")
    s.finish(store, "failed", Status.FAILURE, error="503")
    s.sql(store, "UPDATE workerd_jobs SET fingerprint = %s WHERE id = %s", b"12345678", failed)
    assert ids(store, reason="ok") == [done]
    assert ids(store, error=b"12345678") == ids(store, error=b"12345678", handler="failed") == [failed]
    assert ids(store, error=b"12345679") == []
    request = s.submit(store, s.workflow("flow", "done"))
    ((member,),) = [[row.id for row in s.request(store, request)[1].values()]]
    assert ids(store, request=request) == [member]


def test_meta_is_compared_as_it_is_shown(store: Store) -> None:
    """A value that is redacted cannot be found out by asking for it."""
    job_id = s.enqueue(store, "h", meta=b'{"card": "4711"}')

    def found(value: str) -> list[bytes]:
        wanted = JobFilter(meta={"card": value})
        hide = lambda _, meta: Redaction(["card"]).shown_json(meta)  # noqa: E731
        page = store.read(lambda tx: job_lists.list_(tx, wanted, limit=9, shown=hide))
        return [row.id for row in page.rows]

    assert found("4711") == []
    assert found("[redacted]") == ids(store, meta={"card": "4711"}) == [job_id]
