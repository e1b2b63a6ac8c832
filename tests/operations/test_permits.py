"""Permits go to those who wait, in their order, and outlive no call."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tests.support.eventually import eventually
from workerd.operations.permits import Permit, Permits

LONG_S = 60.0


class _Abandoned(Permit):
    """Notes that it was taken back."""

    __slots__ = ("abandoned",)

    def abandon(self) -> None:
        self.abandoned = True


def test_those_who_wait_get_permits_in_their_order() -> None:
    """One that comes later overtakes nobody, not even a thread that has just given its permit back."""
    permits, first = Permits(1), Permit()
    assert permits.take(first, 0.0)
    order: list[int] = []

    def wait(number: int) -> None:
        permit = Permit()
        assert permits.take(permit, LONG_S)
        order.append(number)
        permits.give_back(permit)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        eventually(lambda number=number: len(permits._waiting) == number)
    permits.give_back(first)
    wait(len(threads))
    for thread in threads:
        thread.join()
    assert order == list(range(len(threads) + 1))


def test_one_who_waits_no_longer_is_passed_over() -> None:
    """What became free goes to the next."""
    permits, first, late, next_ = Permits(1), Permit(), Permit(), Permit()
    assert permits.take(first, 0.0)
    assert not permits.take(late, 0.0)
    permits.give_back(late)
    permits.give_back(first)
    assert permits.take(next_, 0.0)


def _leave_behind(permits: Permits, kept: list[Any]) -> None:
    """Take a permit, and end by an exception at a place where nothing gives it back."""
    permit = _Abandoned(sys._getframe())
    kept.append(permit)
    assert permits.take(permit, LONG_S)
    raise KeyError


def test_a_permit_ends_with_the_function_that_took_it() -> None:
    """Also while its exception, whose traceback has its frame, is still looked at."""
    permits, kept = Permits(1), []
    try:
        _leave_behind(permits, kept)
    except KeyError:
        assert permits.take(Permit(), 0.0)
    assert kept[0].abandoned


def test_one_who_waits_gets_a_permit_that_nobody_gives_back() -> None:
    """It is looked for while one waits; one whose function runs is left alone."""
    permits, kept = Permits(2), []
    running = _Abandoned(sys._getframe())
    assert permits.take(running, 0.0)
    may_end = threading.Event()

    def end_later() -> None:
        permit = Permit(sys._getframe())
        assert permits.take(permit, 0.0)
        may_end.wait()

    holder = threading.Thread(target=end_later)
    holder.start()
    eventually(lambda: len(permits._granted) == 2)
    waiter = threading.Thread(target=lambda: kept.append(permits.take(Permit(), LONG_S)))
    waiter.start()
    eventually(lambda: len(permits._waiting) == 1)
    assert not kept
    may_end.set()
    waiter.join()
    holder.join()
    assert kept == [True]
    assert not hasattr(running, "abandoned")
