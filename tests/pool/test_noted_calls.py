"""Calls that change the process are noted, whoever makes them."""

from __future__ import annotations

import os
from types import SimpleNamespace

from workerd.pool.noted_calls import NotedCalls


def test_a_call_is_noted_and_made():
    module = SimpleNamespace(double=lambda value: 2 * value, other=lambda: "unwatched")
    calls = NotedCalls(module, "double")
    calls.watch()
    assert not calls.noted
    assert module.other() == "unwatched"
    assert not calls.noted
    assert module.double(21) == 42
    assert calls.noted


def test_keywords_are_passed_on():
    """As `os.setpriority` takes them."""
    module = SimpleNamespace(setpriority=os.setpriority)
    calls = NotedCalls(module, "setpriority")
    calls.watch()
    now = os.getpriority(os.PRIO_PROCESS, 0)
    module.setpriority(which=os.PRIO_PROCESS, who=0, priority=now)
    assert calls.noted


def test_a_failing_call_is_noted():
    """It may have changed something before it failed."""
    calls = NotedCalls(module := SimpleNamespace(parse=int), "parse")
    calls.watch()
    try:
        module.parse("x")
    except ValueError:
        assert calls.noted
    else:
        raise AssertionError("the error of the function is not raised")


def test_watching_twice_wraps_once():
    """A worker watches again what its pool has watched before the fork."""
    calls = NotedCalls(module := SimpleNamespace(double=lambda value: 2 * value), "double")
    calls.watch()
    watched = module.double
    calls.watch()
    assert module.double is watched
