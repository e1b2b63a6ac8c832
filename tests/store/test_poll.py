"""What the dispatcher asks at every poll."""

from __future__ import annotations

from tests.support import storing as s
from workerd.clock import SECOND
from workerd.store import handlers, job_control
from workerd.store.base import Store
from workerd.store.claims import PollResult, poll


def seen(store: Store, *names: str) -> PollResult:
    return store.alone(lambda tx: poll(tx, s.NODE.id, names), write=False)


def test_an_empty_store_has_nothing_to_tell(store: Store) -> None:
    """No rows, no orders, nothing due."""
    assert seen(store) == seen(store, "h") == PollResult(set(), set(), [], None)


def test_one_statement_tells_all_that_is_asked_at_a_poll(store: Store) -> None:
    """New rows of the handlers that it names, pauses, cancels of this node's claims, the next due row."""
    running = s.enqueue(store, "b")
    s.claims(store, "b")
    for handler in ("a", "c"):
        s.enqueue(store, handler)
    later = s.enqueue(store, "b", delay=60 * SECOND)
    s.enqueue(store, "b", delay=3600 * SECOND)
    assert store.run(lambda tx: job_control.cancel(tx, running)) == "asked"
    store.run(lambda tx: handlers.pause(tx, "é", "me", None))
    sight = seen(store, "b", "a")
    assert sight == PollResult({"a"}, {"é"}, [(running, 1)], s.job(store, later).row.run_at)


def test_a_look_ends_with_its_statement(store: Store) -> None:
    """What is committed later is seen by the next look, and no look holds a lock."""
    assert not seen(store, "h").handlers
    s.enqueue(store, "h")
    assert seen(store, "h").handlers == {"h"}
    assert len(s.claims(store, "h")) == 1
    assert not seen(store, "h").handlers
