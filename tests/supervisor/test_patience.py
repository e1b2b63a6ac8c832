"""Silence is counted only where a process could have run."""

from __future__ import annotations

import os
import time

import pytest

from tests.support.eventually import eventually
from workerd.runtime.child import Child, fork
from workerd.supervisor.patience import Patience, waited_for_processor


def busy_on(processor: int) -> Child:
    def spin() -> int:
        os.sched_setaffinity(0, {processor})
        while True:
            pass

    return fork(spin)


def test_silence_counts_from_the_last_sign() -> None:
    patience = Patience(10.0)
    patience.watch(0.0, os.getpid())
    assert patience.silence(13.0) == pytest.approx(3.0, abs=1.0)
    patience.heard(14.0)
    assert patience.silence(14.5) == 0.5


def test_what_the_watcher_was_late_is_no_silence() -> None:
    """A machine that did not let the supervisor run did not let its children run either."""
    patience = Patience(0.0)
    for _ in range(4):
        patience.watch(2.0, 0)
    assert patience.silence(10.0) == pytest.approx(2.0)
    patience.heard(10.0)
    assert patience.silence(20.0) == pytest.approx(10.0)


def test_what_a_process_waited_for_a_processor_is_no_silence() -> None:
    """Three that are always ready share one processor."""
    processor = min(os.sched_getaffinity(0))
    children = [busy_on(processor) for _ in range(3)]
    watched = children[0].pid
    try:
        began = time.monotonic()
        patience = Patience(began)
        patience.watch(0.0, watched)
        before = waited_for_processor(watched)
        eventually(lambda: waited_for_processor(watched) - before > 0.2)
        patience.watch(0.0, watched)
        now = time.monotonic()
        assert patience.silence(now) <= now - began - 0.2
    finally:
        for child in children:
            child.kill()
            eventually(lambda c=child: c.reap() is not None)
            child.close()


def test_a_process_that_sleeps_or_is_gone_is_silent() -> None:
    """Nothing excuses it."""
    patience = Patience(0.0)
    for _ in range(3):
        patience.watch(0.0, 2**22)
    assert patience.silence(10.0) == 10.0
