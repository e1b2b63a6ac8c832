"""When a process that died is started again."""

from __future__ import annotations

from workerd.config.model import RestartConfig
from workerd.runtime.child import ROLE_PAUSE, RestartPolicy

LIVED = 0.5
"""Seconds: died soon after its start."""


def pauses(policy: RestartPolicy, times: int, *, blameless: bool = False) -> list[float]:
    """The pauses after so many quick deaths in a row."""
    return [policy.died(0.0, LIVED, blameless=blameless) for _ in range(times)]


def test_who_lived_for_long_is_started_at_once() -> None:
    """A death after more than two seconds costs no pause and ends a row of quick ones."""
    policy = RestartPolicy()
    pauses(policy, 3)
    assert policy.died(0.0, 2.5) == 0.0
    assert policy.died(0.0, LIVED) == 0.1


def test_pauses_of_a_crash_loop_grow() -> None:
    """Who dies at once by its own fault waits twice as long each time, at most five seconds."""
    assert pauses(RestartPolicy(), 8) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, ROLE_PAUSE, ROLE_PAUSE]


def test_killed_at_work_again_and_again() -> None:
    """Who does its work whenever it is let is back soon, however often somebody kills it."""
    assert max(pauses(RestartPolicy(), 20, blameless=True)) <= 0.2


def test_a_kill_at_work_forgives_a_crash_loop() -> None:
    """A process that did get to its work has shown that the loop is over."""
    policy = RestartPolicy()
    pauses(policy, 8)
    assert policy.died(0.0, LIVED, blameless=True) <= 0.2
    assert policy.died(0.0, LIVED) < ROLE_PAUSE


def test_kills_count_for_quarantine() -> None:
    """A pool that dies more often than `restart` allows is held back, whoever kills it."""
    policy = RestartPolicy(RestartConfig(intensity=3, period=60.0))
    pauses(policy, 3, blameless=True)
    assert not policy.quarantined
    pauses(policy, 1, blameless=True)
    assert policy.quarantined
