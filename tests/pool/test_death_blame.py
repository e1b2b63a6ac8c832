"""Which attempt a death counts for, of those that the worker had been given."""

from __future__ import annotations

import pytest

from tests.support.worker import claim_of
from workerd.config.handler_config import Policy
from workerd.pool import death_blame
from workerd.pool.attempt import AssignedAttempt, KillReason
from workerd.pool.death_blame import DeathBlame

NONE = KillReason.NONE


def attempts(count: int) -> list[AssignedAttempt]:
    return [AssignedAttempt(serial + 1, claim_of("noop"), Policy(), 0) for serial in range(count)]


def test_the_first_that_it_took_is_blamed() -> None:
    """Those behind it, and those that it left in the queue, were not started."""
    one, two, three = attempts(3)
    assert DeathBlame().attempt_blamed([one, two, three], {3}, NONE, unmarked=False) is one
    assert DeathBlame().attempt_blamed([one, two, three], {1, 3}, NONE, unmarked=False) is two
    assert DeathBlame().attempt_blamed([], set(), KillReason.CANCELLED, unmarked=False) is None


@pytest.mark.parametrize(("reason", "is_blamed"), [(NONE, False), (KillReason.CANCELLED, True)])
def test_what_was_not_started_is_blamed_for_some_kills_only(reason: KillReason, is_blamed: bool) -> None:
    """One that was cancelled ends so; a deadline or the daemon's stop leaves it to another worker."""
    one, two = attempts(2)
    blamed = DeathBlame().attempt_blamed([one, two], {1, 2}, reason, unmarked=True)
    assert blamed is (one if is_blamed else None)


def test_a_job_is_spared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of what was started is a handler's to write too; as many jobs are remembered as fit."""
    monkeypatch.setattr(death_blame, "MAX_SPARED_JOBS", 2)
    blame = DeathBlame()
    one, two, three = attempts(3)

    def is_blamed(attempt: AssignedAttempt) -> bool:
        return blame.attempt_blamed([attempt], set(), NONE, unmarked=True) is attempt

    assert [is_blamed(attempt) for attempt in (one, one, two, two)] == [False, True, False, True]
    assert [is_blamed(attempt) for attempt in (three, one)] == [False, False]
