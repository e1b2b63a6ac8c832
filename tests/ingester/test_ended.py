"""The attempts that an ingester has written the end of."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest

from tests.support.ingesting import IngesterHarness
from tests.support.outcomes import outcome
from workerd.ingester import ended
from workerd.ingester.ended import EndedAttempts
from workerd.job import AttemptRef, Status
from workerd.messages import Barrier, BarrierDone


def test_ends_are_kept_and_releases_are_not() -> None:
    """A released attempt may be `new` again."""
    kept = EndedAttempts()
    first, second, released = outcome(), outcome(), outcome()
    kept.add([first, msgspec.structs.replace(released, status=Status.NEW)])
    kept.add([second])
    assert kept.refs() == [first.ref, second.ref]


def test_the_oldest_are_forgotten_and_since_when_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before that moment may be missing."""
    monkeypatch.setattr(ended, "MAX_ATTEMPTS", 5)
    kept = EndedAttempts()
    assert kept.since_ns <= time.monotonic_ns()
    batches = [[outcome() for _ in range(3)] for _ in range(3)]
    for batch in batches:
        before = time.monotonic_ns()
        kept.add(batch)
    assert kept.refs() == [made.ref for made in batches[2]]
    assert kept.since_ns <= before


def test_a_barrier_tells_what_was_ended_if_it_asks(
    make_harness: Callable[..., IngesterHarness], store_url: str
) -> None:
    """Whether or not the outcome took effect: the store may have lost the claim."""
    harness = make_harness(store_url).start()
    dispatcher, pool = harness.pool("dispatcher").connect(), harness.pool().connect()
    (made,) = harness.insert_claimed(1)
    unknown = outcome()
    pool.send(made, unknown)
    harness.until(lambda: pool.all_durable)
    answers: list[BarrierDone] = []
    assert dispatcher.channel is not None
    dispatcher.on_barrier_done = answers.append
    dispatcher.send_message(Barrier(token=1, lives={}))
    dispatcher.send_message(Barrier(token=2, lives={}, ended=True))
    harness.until(lambda: len(answers) == 2)
    assert answers[0].ended == []
    assert answers[1].ended == [AttemptRef(made.id, 1), AttemptRef(unknown.id, 1)]
    assert 0 < answers[1].ended_since_ns < time.monotonic_ns()
