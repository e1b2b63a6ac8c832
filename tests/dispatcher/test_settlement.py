"""Settlement: every claim without an owner gets an outcome, and no other claim does."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.dispatching import FakePool, MakeHarness, insert_jobs, job_state
from tests.support.eventually import eventually
from workerd.dispatcher.pool_links import PoolLink
from workerd.errors import StoreAway
from workerd.job import Status
from workerd.outcome import Reason
from workerd.runtime.sockets import poke
from workerd.store import claims as store_claims
from workerd.store.base import Store, Tx
from workerd.store.session import Session

LIFE = 50
"""Of a pool that connects before any Roster names it."""


def test_a_killed_dispatcher_loses_nothing_between_commit_and_hand_over(
    make_harness: MakeHarness, store: Store
) -> None:
    """Claims that were committed but never sent are released; no attempt is spent."""
    harness = make_harness()
    ids = insert_jobs(store, "h", 5)

    def die_before_hand_over() -> None:
        def die(link: PoolLink, claims: object) -> list[object]:
            os.kill(os.getpid(), signal.SIGKILL)
            return []

        PoolLink.hand_over = die  # type: ignore[method-assign,assignment]

    child = harness.start(die_before_hand_over)
    pool = harness.pool("h").connect()
    pool.demand(10)
    harness.until(lambda: child.reap() is not None)
    assert {job_state(store, job) for job in ids} == {("inprogress", None, 1)}
    harness.start()
    pool.disconnect()
    pool.connect()
    pool.demand(10)
    harness.until(lambda: len(pool.claims) == 5)
    assert set(pool.claims) == {(job, 1) for job in ids}
    assert {outcome.status for outcome in harness.ingester.outcomes} == {Status.NEW}


def test_claims_held_by_a_live_pool_stay_with_it(make_harness: MakeHarness, store: Store) -> None:
    """After a restart of the dispatcher, claims in a pool's hands stay there."""
    harness = make_harness()
    ids = insert_jobs(store, "h", 5)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(5)
    harness.until(lambda: len(pool.claims) == 5)
    harness.kill()
    harness.start()
    pool.connect()
    harness.until(lambda: harness.settled())
    assert not harness.ingester.outcomes
    assert {job_state(store, job)[0] for job in ids} == {"inprogress"}


def test_settlement_waits_for_every_live_pool(make_harness: MakeHarness, store: Store) -> None:
    """A pool that has not answered yet may hold anything."""
    harness = make_harness()
    ids = insert_jobs(store, "h", 3)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(3)
    harness.until(lambda: len(pool.claims) == 3)
    harness.kill()
    harness.start()
    harness.until(lambda: harness.is_up)
    harness.serve(0.3)
    assert harness.beat.info["settlement"] == "collecting"
    pool.silent = True
    pool.connect()
    harness.serve(0.3)
    assert {job_state(store, job)[0] for job in ids} == {"inprogress"}
    pool.silent = False
    pool.disconnect()
    pool.connect()
    harness.until(lambda: harness.settled())
    assert not harness.ingester.outcomes


def test_claims_of_a_dead_pool_are_lost(make_harness: MakeHarness, store: Store) -> None:
    """Claims of a dead pool are retried as lost after the outcomes it had sent are written."""
    harness = make_harness()
    ids = insert_jobs(store, "h", 4)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(4)
    harness.until(lambda: len(pool.claims) == 4)
    harness.report_death(pool)
    harness.until(lambda: len(harness.ingester.outcomes) == 4)
    assert pool.life in harness.ingester.barriers[-1].lives
    assert {(o.status, o.reason, o.node_id) for o in harness.ingester.outcomes} == {
        (Status.RETRY, Reason.LOST, None)
    }
    assert {job_state(store, job)[2] for job in ids} == {2}


def test_claims_of_other_pools_survive_the_death_of_one(make_harness: MakeHarness, store: Store) -> None:
    """Settlement after a death touches nothing that a live pool holds."""
    harness = make_harness()
    insert_jobs(store, "h", 2)
    others = insert_jobs(store, "g", 2)
    harness.start()
    dying, living = harness.pool("h").connect(), harness.pool("g").connect()
    dying.demand(2)
    living.demand(2)
    harness.until(lambda: len(dying.claims) == 2 and len(living.claims) == 2)
    harness.report_death(dying)
    harness.until(lambda: len(harness.ingester.outcomes) == 2)
    harness.until(lambda: harness.settled(2))
    assert {o.handler for o in harness.ingester.outcomes} == {"h"}
    assert {job_state(store, job)[0] for job in others} == {"inprogress"}


@pytest.mark.slow
def test_claims_made_during_a_settlement_stay_with_their_pool(
    make_harness: MakeHarness, store: Store
) -> None:
    """While a settlement waits for the ingester, new claims reach the pool and stay with it."""
    harness = make_harness()
    harness.start()
    pool = harness.pool("h").connect()
    harness.until(lambda: harness.settled())
    harness.ingester.paused = True
    dying = harness.pool("g").connect()
    harness.serve(0.1)
    harness.report_death(dying)
    insert_jobs(store, "h", 5)
    pool.demand(5)
    poke(harness.paths.wake)
    harness.until(lambda: len(pool.claims) == 5)
    harness.ingester.resume()
    harness.until(lambda: harness.settled(2))
    assert not harness.ingester.outcomes


def test_claims_on_a_broken_connection_are_released(make_harness: MakeHarness, store: Store) -> None:
    """The pool is alive but never read them: they are claimed again, with no attempt spent."""
    harness = make_harness()
    ids = insert_jobs(store, "h", 5)
    harness.start()
    pool = harness.pool("h").connect()
    harness.until(lambda: harness.is_up and harness.settled())
    pool.demand(5)
    assert pool.channel is not None
    pool.channel.flush()
    eventually(lambda: {job_state(store, job)[0] for job in ids} == {"inprogress"})
    pool.disconnect()  # the sent outcomes are still unread in the socket
    pool.connect()
    pool.demand(5)
    harness.until(lambda: len(pool.claims) == 5)
    assert set(pool.claims) == {(job, 1) for job in ids}


def test_a_commit_without_an_answer_is_settled(make_harness: MakeHarness, store: Store) -> None:
    """The server committed the claim and its answer was lost: the rows are released."""
    harness = make_harness()
    ids = insert_jobs(store, "h", 5)

    def lose_one_answer() -> None:
        commit = Store._commit

        def losing(self: Store, session: Session, tx: Tx, write: bool) -> None:
            if claimed:
                claimed.clear()
                session.commit()
                session.commit = unanswered  # type: ignore[method-assign]
            commit(self, session, tx, write)

        def unanswered() -> None:
            raise StoreAway("connection lost during COMMIT", 2013)

        claimed: list[int] = []
        claim = store_claims.claim

        def noted(*args: object, **named: object) -> object:
            batch = claim(*args, **named)  # type: ignore[arg-type]
            if batch.claims and not done:
                claimed.append(1)
                done.append(1)
            return batch

        done: list[int] = []
        Store._commit = losing  # type: ignore[method-assign]
        store_claims.claim = noted  # type: ignore[assignment]

    harness.start(lose_one_answer)
    pool = harness.pool("h").connect()
    pool.demand(5)
    harness.until(lambda: len(pool.claims) == 5)
    assert set(pool.claims) == {(job, 1) for job in ids}
    assert {outcome.status for outcome in harness.ingester.outcomes} == {Status.NEW}
    assert len(harness.ingester.outcomes) == 5


@pytest.mark.slow
def test_outcomes_are_sent_again_to_a_restarted_ingester(make_harness: MakeHarness, store: Store) -> None:
    """An outcome that was not acknowledged reaches the next ingester, and so does the barrier."""
    harness = make_harness()
    ids = insert_jobs(store, "h", 3)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(3)
    harness.until(lambda: len(pool.claims) == 3 and harness.settled())
    harness.ingester.paused = True
    harness.report_death(pool)
    harness.until(lambda: harness.beat.info["settlement"] == "writing")
    harness.ingester.restart()
    harness.ingester.paused = False
    harness.until(lambda: all(job_state(store, job)[2] == 2 for job in ids))


@pytest.mark.slow
def test_a_pool_that_connects_before_its_roster_is_inventoried(
    make_harness: MakeHarness, store: Store
) -> None:
    """The supervisor forks many at once: an older Roster must not make the dispatcher refuse the pool."""
    harness = make_harness()
    harness.start(send_roster=False)
    pool = FakePool(harness, "h", ("h",), LIFE).connect()
    harness.send_roster()
    harness.until(lambda: harness.settled())
    harness.pools["h"] = LIFE
    harness.send_roster()
    harness.until(lambda: harness.settled())
    insert_jobs(store, "h", 3)
    pool.demand(3)
    harness.until(lambda: len(pool.claims) == 3)
    rounds = harness.beat.info["settlements"]
    dying = harness.pool("g").connect()
    harness.until(lambda: "g" in harness.beat.info["pools"])
    harness.report_death(dying)
    harness.until(lambda: harness.settled(rounds + 1))
    assert not harness.ingester.outcomes
    pool.disconnect()


def test_a_pool_that_died_before_its_roster_is_not_waited_for(make_harness: MakeHarness) -> None:
    """Nor does a process that says Hello as a life that nobody named delay any settlement."""
    harness = make_harness()
    harness.start(send_roster=False)
    FakePool(harness, "h", ("h",), LIFE).connect().disconnect()
    forged = FakePool(harness, "forged", ("h",), LIFE + 50).connect()
    harness.send_roster()
    harness.pools["g"] = LIFE + 1
    harness.send_roster()
    harness.until(lambda: harness.settled())
    assert not harness.ingester.outcomes
    assert not harness.beat.info["pools"]
    forged.disconnect()
