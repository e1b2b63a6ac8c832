"""Permits for a limited number of calls at a time: first come, first served, and an exception loses none."""

from __future__ import annotations

import threading
import time
from collections import deque
from types import FrameType

RECHECK_S = 0.1
"""How often a waiting call looks for permits whose calls have ended without returning them."""


class Permit:
    """Of the call of a plain function, that of `frame`; None: until it is given back.

    An exception of a signal handler may come at any place, also between a permit and the `try` that would
    give it back, so that a permit is never held for longer than the function runs.
    """

    __slots__ = ("_frame", "turn")

    def __init__(self, frame: FrameType | None = None) -> None:
        self._frame = frame
        self.turn: threading.Lock | None = None
        """Of one that is waited for: held until it is granted."""

    def has_ended(self) -> bool:
        """Whether the function is over; what its frame still refers to, for a traceback, is let go then."""
        if self._frame is None:
            return False
        try:
            self._frame.clear()
        except RuntimeError:  # it runs
            return False
        return True

    def abandon(self) -> None:
        """Called when it is taken from a call that has ended."""


class Permits:
    """At most `count` at a time. What says whether one is granted is the set alone, the rest only wakes.

    Measured: a microsecond for one that is free. threading's semaphore takes 4.8, and lets a thread that
    comes back at once overtake those that wait.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._granted: set[Permit] = set()
        self._waiting: deque[Permit] = deque()
        self._lock = threading.RLock()  # a handler of signals may come here while its thread is here

    def take(self, permit: Permit, timeout_s: float) -> bool:
        """Wait for it, behind those that wait already; false if it is not granted in time.

        Whatever happens, `give_back` is to follow.
        """
        with self._lock:
            if not self._waiting and len(self._granted) < self._count:
                self._granted.add(permit)
                return True
        return self._wait(permit, time.monotonic() + timeout_s)

    def give_back(self, permit: Permit) -> None:
        """It is not needed any more, or not waited for."""
        with self._lock:
            self._granted.discard(permit)
            if permit.turn is not None:
                self._remove_waiting(permit)
            if self._waiting:
                self._grant()

    def _wait(self, permit: Permit, deadline: float) -> bool:
        turn = permit.turn = threading.Lock()
        turn.acquire()
        with self._lock:
            self._waiting.append(permit)
        while True:
            with self._lock:
                self._grant()
                if permit in self._granted:
                    return True
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            turn.acquire(timeout=min(left_s, RECHECK_S))

    def _grant(self) -> None:
        """To those that wait, in their order; to none whose call has ended meanwhile."""
        while self._waiting and self._has_room():
            first = self._waiting[0]
            if not first.has_ended():
                self._granted.add(first)
                if first.turn is not None and first.turn.locked():
                    first.turn.release()
            self._remove_waiting(first)

    def _remove_waiting(self, permit: Permit) -> None:
        if permit in self._waiting:
            self._waiting.remove(permit)

    def _has_room(self) -> bool:
        if len(self._granted) >= self._count:
            for permit in [permit for permit in self._granted if permit.has_ended()]:
                self._granted.discard(permit)
                permit.abandon()
        return len(self._granted) < self._count
