"""Conflicts of unique keys: a model of one key, run beside both engines."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import storing
from tests.support.eventually import eventually
from tests.support.rows import Rows
from workerd import clock
from workerd.clock import SECOND
from workerd.errors import Conflict
from workerd.ingester import writer
from workerd.job import Claim, Status
from workerd.job_spec import JobSpec, check
from workerd.outcome import NextAttempt, Outcome, Reason, released
from workerd.store import claims, duplicates, job_control
from workerd.store.base import Store, Tx
from workerd.store.jobs import Inserted

NODE = storing.NODE


def put(store: Store, value: int, key: str = "k", **options: Any) -> Inserted:
    new = check(JobSpec(handler="h", vars={"v": value}, unique_key=key, **options))
    return store.run(lambda tx: duplicates.insert(tx, [new]))[0]


def claim(store: Store) -> list[Claim]:
    return store.run(lambda tx: claims.claim(tx, "h", 100, NODE)).claims


def end(store: Store, claimed: Claim, *, retry: bool = False) -> None:
    outcome = Outcome(
        id=claimed.id,
        attempt=claimed.attempt,
        claimed_at=claimed.claimed_at,
        handler="h",
        status=Status.RETRY if retry else Status.COMPLETED,
        reason=Reason.ERROR if retry else Reason.OK,
        success=not retry,
        unique_key=claimed.unique_key,
        next=NextAttempt(0, 1, 0, 0) if retry else None,
    )
    store.run(lambda tx: writer.close(tx, [outcome], NODE.id))


def test_a_waiting_job_is_replaced(store: Store, store_url: str) -> None:
    """It keeps its id; vars, meta, priority, time and group are the new ones."""
    first = put(store, 1, on_conflict="replace", delay=3600)
    again = put(store, 2, on_conflict="replace", priority=-5, meta={"m": 1}, group="g")
    assert first == Inserted(first.id, True, False)
    assert again == Inserted(first.id, False, True)
    row = Rows(store_url).last(first.id)
    assert (json.loads(row["vars"]), json.loads(row["meta"])) == ({"v": 2}, {"m": 1})
    assert (row["priority"], row["status"], row["group_key"], row["unique_key"]) == (-5, "new", "g", "k")
    assert put(store, 3) == Inserted(first.id, False, False)
    assert json.loads(Rows(store_url).last(first.id)["vars"]) == {"v": 2}


@pytest.mark.parametrize("word", ["replace", "follow"])
def test_behind_a_running_job_the_newest_data_waits(store: Store, store_url: str, word: str) -> None:
    """One at most; the transaction that ends the running one lets it go."""
    first = put(store, 1, on_conflict=word)
    [running] = claim(store)
    second = put(store, 2, on_conflict=word)
    assert second.created
    assert put(store, 3, on_conflict=word) == Inserted(second.id, False, True)
    assert claim(store) == []
    assert store.run(lambda tx: claims.promote_due(tx, 100)).count == 0
    with pytest.raises(Conflict, match="waits until another job"):
        store.run(lambda tx: job_control.retry(tx, second.id))
    shown = storing.job(store, second.id).row
    assert (shown.shown_key, shown.status) == ("k", "scheduled")
    end(store, running)
    [follower] = claim(store)
    assert (follower.id, follower.vars, follower.unique_key) == (second.id, b'{"v":3}', "k")
    assert Rows(store_url).last(first.id)["status"] == "completed"


def test_a_follower_waits_for_retries_and_is_let_go_by_a_cancel(store: Store) -> None:
    """The key is held while the running job is to be tried again."""
    first = put(store, 1, on_conflict="follow")
    [running] = claim(store)
    second = put(store, 2, on_conflict="follow")
    end(store, running, retry=True)
    assert put(store, 3, on_conflict="follow") == Inserted(second.id, False, True)
    assert store.run(lambda tx: job_control.cancel(tx, first.id)) == "ended"
    [follower] = claim(store)
    assert (follower.id, follower.vars) == (second.id, b'{"v":3}')


def test_a_running_job_whose_key_another_program_ended_with_a_space(store: Store, store_url: str) -> None:
    """Where the engine sees no difference its end lets the follower go; else it is another key's."""
    Rows(store_url).insert("h", unique_key="k ")
    [padded] = claim(store)
    first = put(store, 1, on_conflict="follow")
    if store.dialect.name == "mysql":
        assert claim(store) == []
        end(store, padded)
        assert [(c.id, c.unique_key) for c in claim(store)] == [(first.id, "k")]
        return
    [running] = claim(store)
    second = put(store, 2, on_conflict="follow")
    end(store, padded)
    assert claim(store) == []
    end(store, running)
    assert [(c.id, c.unique_key) for c in claim(store)] == [(second.id, "k")]


def sweep(store: Store) -> int:
    found = store.read(lambda tx: duplicates.without_holder(tx, ["g", "h"], 100))
    return store.run(lambda tx: duplicates.release(tx, found)) if found else 0


LOSSES = [
    "DELETE FROM workerd_jobs WHERE id = %s",
    "UPDATE workerd_jobs SET unique_key = NULL WHERE id = %s",
    "UPDATE workerd_jobs SET status = 'completed' WHERE id = %s",
]
"""What a person may do to the row of a running job."""


@pytest.mark.parametrize("sql", LOSSES, ids=["deleted", "without key", "ended"])
def test_what_waits_behind_a_job_that_is_no_more_is_let_go(store: Store, store_url: str, sql: str) -> None:
    """By a sweep, which leaves alone what has a job before it, running or waiting to be tried again."""
    first, other = put(store, 1, on_conflict="follow"), put(store, 1, "other", on_conflict="follow")
    running = {c.id: c for c in claim(store)}
    second, third = put(store, 2, on_conflict="follow"), put(store, 2, "other", on_conflict="follow")
    assert sweep(store) == 0
    end(store, running[other.id], retry=True)
    Rows(store_url).sql(sql, first.id)
    assert sweep(store) == 1
    assert sweep(store) == 0
    assert {c.id: c.unique_key for c in claim(store)} == {second.id: "k", other.id: "other"}
    assert Rows(store_url).last(third.id)["given_key"] == "other"


def test_the_end_of_a_job_that_lost_its_key_lets_nothing_go_that_waits_behind_another(
    store: Store, store_url: str
) -> None:
    """It is recorded, with what ends beside it, and what follows from that."""
    first, other = put(store, 1), put(store, 1, "other")
    lost = {c.id: c for c in claim(store)}
    Rows(store_url).sql(LOSSES[1], first.id)
    put(store, 2)
    [holder] = claim(store)
    waiting, freed = put(store, 3, on_conflict="follow"), put(store, 3, "other", on_conflict="follow")
    ending = [storing.outcome(one) for one in lost.values()]
    batch = store.run(lambda tx: writer.close(tx, ending, NODE.id))
    assert {ref.id for ref in batch.refs} == {first.id, other.id}
    assert [c.id for c in claim(store)] == [freed.id]
    end(store, holder)
    assert [c.id for c in claim(store)] == [waiting.id]


def test_one_that_is_to_wait_for_its_delay_still_does(store: Store, store_url: str) -> None:
    """Also when the job before it is no more."""
    first = put(store, 1)
    claim(store)
    second = put(store, 2, on_conflict="debounce", delay=3600)
    Rows(store_url).sql(LOSSES[0], first.id)
    assert sweep(store) == 1
    row = Rows(store_url).last(second.id)
    assert (row["status"], row["unique_key"], row["given_key"]) == ("scheduled", "k", None)


def test_a_key_that_was_taken_meanwhile_is_waited_for(store: Store, store_url: str) -> None:
    """Between the look of a sweep and its write; what another sweep has let go is left alone."""
    first = put(store, 1, on_conflict="follow")
    claim(store)
    second = put(store, 2, on_conflict="follow")
    Rows(store_url).sql(LOSSES[0], first.id)
    found = store.read(lambda tx: duplicates.without_holder(tx, ["h"], 100))
    assert [ref.id for ref in found] == [second.id]
    put(store, 3)
    assert store.run(lambda tx: duplicates.release(tx, found)) == 0
    [taken] = claim(store)
    end(store, taken)
    assert store.run(lambda tx: duplicates.release(tx, found)) == 0
    assert [c.id for c in claim(store)] == [second.id]


def write_15(store: Store) -> None:
    for value in range(15):
        put(store, value, str(value % 3), on_conflict="follow")


def end_or_delete(store: Store) -> None:
    """Start what waits; delete the row of every fourth."""
    # New data may be due just after the moment of the sweep that lets it go.
    store.run(lambda tx: claims.promote_due(tx, 100))
    for claimed in claim(store):
        if json.loads(claimed.vars)["v"] % 4:
            end(store, claimed)
        else:
            store.run(lambda tx, claimed=claimed: tx.execute(LOSSES[0], (claimed.id,)))


def test_sweeps_beside_writers_claims_ends_and_deletes(
    store: Store, store_url: str, opened: Callable[..., Store]
) -> None:
    """Two sweeps, four writers: in the end nothing waits, and nothing has failed."""
    done = threading.Event()

    def repeat(work: Callable[[Store], object], own: Store) -> None:
        while not done.is_set():
            work(own)

    with ThreadPoolExecutor(7) as threads:
        try:
            others = [threads.submit(repeat, w, opened(store_url)) for w in (end_or_delete, sweep, sweep)]
            for writer_ in [threads.submit(write_15, opened(store_url)) for _ in range(4)]:
                writer_.result()
            eventually(lambda: not Rows(store_url).counts().keys() & {"new", "scheduled", "inprogress"})
        finally:
            done.set()
    for one in others:
        one.result()


def test_a_debounced_job_waits_from_the_last_enqueue(store: Store) -> None:
    """At most `max_delay` from the first; behind a running one too."""
    first = put(store, 1, on_conflict="debounce", delay=100, max_delay=150)
    made = storing.job(store, first.id).row
    assert made.run_at is not None and made.created_at is not None  # noqa: PT018
    assert made.run_at == made.created_at + 100 * SECOND
    put(store, 2, on_conflict="debounce", delay=1000, max_delay=150)
    later = storing.job(store, first.id).row
    assert (later.run_at, later.status) == (made.created_at + 150 * SECOND, "scheduled")
    put(store, 3, on_conflict="debounce", delay=0)
    [running] = claim(store)
    second = put(store, 4, on_conflict="debounce", delay=3600)
    end(store, running)
    follower = storing.job(store, second.id).row
    assert (follower.status, follower.unique_key) == ("scheduled", "k")
    assert follower.run_at is not None and follower.created_at is not None  # noqa: PT018
    assert follower.run_at == follower.created_at + 3600 * SECOND


@pytest.mark.parametrize("word", ["replace", "debounce", "follow"])
def test_the_new_data_expires_as_it_says(store: Store, word: str) -> None:
    """Or never, if it says nothing: what expired with the old data would never run."""
    first = put(store, 1, on_conflict=word, delay=60, expires="5s")
    put(store, 2, on_conflict=word, delay=3600, expires="10s")
    row = storing.job(store, first.id).row
    assert row.run_at is not None
    assert row.expires_at == row.run_at + 10 * SECOND
    put(store, 3, on_conflict=word, delay=60, expires=NEVER)
    assert storing.job(store, first.id).row.expires_at == clock.from_text("9000-01-01 00:00:00.000000")
    put(store, 4, on_conflict=word, delay=3600)
    assert storing.job(store, first.id).row.expires_at is None


NEVER = datetime(9000, 1, 1, tzinfo=UTC)


def test_a_window_has_one_job_live_or_not(store: Store, store_url: str) -> None:
    """Whatever its data; another length or key is another window."""
    first = put(store, 1, unique_for="300d")
    [running] = claim(store)
    assert put(store, 2, unique_for="300d") == Inserted(first.id, False, False)
    end(store, running)
    assert put(store, 3, unique_for="300d") == Inserted(first.id, False, False)
    assert put(store, 3, unique_for="299d").created
    assert put(store, 3, "other", unique_for="300d").created
    assert storing.job(store, first.id).row.shown_key == "k"


@pytest.mark.parametrize("word", [None, "replace"])
def test_of_jobs_of_one_window_in_one_call_the_first_is_created(store: Store, word: str | None) -> None:
    """The others are answered with it, also beside jobs that replace."""
    specs = [JobSpec(handler="h", vars={"v": n}, unique_key="k", unique_for="300d") for n in range(3)]
    specs.append(JobSpec(handler="h", unique_key="other", on_conflict=word))
    done = store.run(lambda tx: duplicates.insert(tx, [check(spec) for spec in specs]))
    assert [one.created for one in done] == [True, False, False, True]
    assert len({one.id for one in done}) == 2
    assert storing.job(store, done[0].id).row.vars == b'{"v":0}'


def test_jobs_of_one_call_are_put_in_their_order(store: Store) -> None:
    """Plain ones, kept ones, and several of one key."""
    keys = [("b", "replace"), (None, None), ("a", "replace"), ("b", "replace"), ("b", None)]
    specs = [
        JobSpec(handler="h", vars={"v": n}, unique_key=key, on_conflict=word)
        for n, (key, word) in enumerate(keys)
    ]
    done = store.run(lambda tx: duplicates.insert(tx, [check(spec) for spec in specs]))
    assert [one.created for one in done] == [True, True, True, False, False]
    assert [one.replaced for one in done] == [False, False, False, True, False]
    assert done[0].id == done[3].id == done[4].id
    assert sorted(c.vars for c in claim(store)) == [b'{"v":1}', b'{"v":2}', b'{"v":3}']


class OneKey(RuleBasedStateMachine):
    """A model of one key: who holds it, who waits behind, and which data each has."""

    store: Store
    url: str

    def __init__(self) -> None:
        super().__init__()
        self.key = uuid.uuid4().hex
        self.value = 0
        self.holder: tuple[bytes, int, bool] | None = None  # id, data, runs
        self.follower: tuple[bytes, int] | None = None
        self.claims: dict[bytes, Claim] = {}

    @rule(word=st.sampled_from(["keep", "replace", "follow", "debounce"]))
    def enqueue(self, word: str) -> None:
        self.value += 1
        delay = {"delay": 0} if word == "debounce" else {}
        done = put(self.store, self.value, self.key, on_conflict=word, **delay)
        if self.holder is None:
            assert done.created
            self.holder = done.id, self.value, False
        elif word == "keep":
            assert done == Inserted(self.holder[0], False, False)
        elif self.follower is not None:
            assert done == Inserted(self.follower[0], False, True)
            self.follower = self.follower[0], self.value
        elif self.holder[2]:
            assert done.created
            self.follower = done.id, self.value
        else:
            assert done == Inserted(self.holder[0], False, True)
            self.holder = self.holder[0], self.value, False

    @rule()
    def start(self) -> None:
        found = {c.id: c for c in claim(self.store)}
        if self.holder is not None and not self.holder[2]:
            claimed = found[self.holder[0]]
            assert claimed.vars == b'{"v":%d}' % self.holder[1]
            self.claims[claimed.id] = claimed
            self.holder = *self.holder[:2], True
        else:
            assert not found

    def _after_end(self) -> None:
        self.holder = None if self.follower is None else (*self.follower, False)
        self.follower = None

    @precondition(lambda self: self.holder is not None and self.holder[2])
    @rule(how=st.sampled_from(["end", "retry", "release"]))
    def stop(self, how: str) -> None:
        assert self.holder is not None
        claimed = self.claims.pop(self.holder[0])
        if how == "release":
            self.store.run(lambda tx: writer.close(tx, [released(claimed)], NODE.id))
        else:
            end(self.store, claimed, retry=how == "retry")
        if how == "end":
            self._after_end()
        else:
            self.holder = *self.holder[:2], False

    @precondition(lambda self: self.holder is not None and self.holder[2])
    @rule(sql=st.sampled_from(LOSSES))
    def lose(self, sql: str) -> None:
        assert self.holder is not None
        self.claims.pop(self.holder[0])
        self.store.run(lambda tx: tx.execute(sql, (self.holder and self.holder[0],)))
        self._after_end()
        self.sweep(let_go=self.holder is not None)

    @rule()
    def sweep(self, *, let_go: bool = False) -> None:
        assert sweep(self.store) == int(let_go)

    @precondition(lambda self: self.holder is not None and not self.holder[2])
    @rule()
    def cancel(self) -> None:
        assert self.holder is not None
        job_id = self.holder[0]
        assert self.store.run(lambda tx: job_control.cancel(tx, job_id)) == "ended"
        self._after_end()

    @precondition(lambda self: self.follower is not None)
    @rule()
    def cancel_follower(self) -> None:
        assert self.follower is not None
        job_id = self.follower[0]
        assert self.store.run(lambda tx: job_control.cancel(tx, job_id)) == "ended"
        self.follower = None

    @invariant()
    def live_rows_are_those_of_the_model(self) -> None:
        def work(tx: Tx) -> list[tuple[Any, ...]]:
            return tx.query(
                "SELECT id, vars FROM workerd_jobs WHERE handler = 'h'"
                " AND status IN ('scheduled', 'new', 'inprogress') AND (unique_key = %s OR given_key = %s)",
                (self.key, self.key),
            )

        expected = {} if self.holder is None else {self.holder[0]: self.holder[1]}
        if self.follower is not None:
            expected[self.follower[0]] = self.follower[1]
        found = {row[0]: json.loads(row[1])["v"] for row in self.store.read(work)}
        assert found == expected

    def teardown(self) -> None:
        self.store.run(lambda tx: tx.execute("DELETE FROM workerd_jobs"))


def test_the_store_does_what_the_model_says(store: Store, store_url: str) -> None:
    """Random enqueues, claims, ends, retries, releases and cancels of one key."""

    class Machine(OneKey):
        pass

    Machine.store, Machine.url = store, store_url
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=25, stateful_step_count=20, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_the_newest_data_runs_last_whoever_writes_it(
    store: Store, store_url: str, opened: Callable[..., Store]
) -> None:
    """Eight writers of one key beside its claims and ends: what a writer got an answer for is not lost."""
    lock = threading.Lock()
    newest = [0]
    ran: list[int] = []
    done = threading.Event()

    def write(own: Store) -> None:
        for _ in range(12):
            with lock:  # so that there is an order of writes to compare with
                newest[0] += 1
                put(own, newest[0], on_conflict="follow")

    def work(own: Store) -> None:
        while not done.is_set() or Rows(store_url).counts().keys() & {"new", "scheduled", "inprogress"}:
            for claimed in claim(own):
                ran.append(json.loads(claimed.vars)["v"])
                end(own, claimed)

    threads = [threading.Thread(target=write, args=(opened(store_url),)) for _ in range(8)]
    worker = threading.Thread(target=work, args=(opened(store_url),))
    for thread in (*threads, worker):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    worker.join()
    assert ran == sorted(set(ran))
    assert ran[-1] == newest[0] == 96
    eventually(lambda: Rows(store_url).counts().keys() == {"completed"})
