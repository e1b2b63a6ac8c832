"""An alarm that is set again for every job without leaving a cancelled timer behind each time."""

from __future__ import annotations

import math
import time

from workerd.process.loop import Callback, Loop, Timer


class Alarm:
    """One time at which `callback` is called; setting it again moves it.

    A timer that is pending for an earlier time is left alone and looks again when it fires: a thousand
    jobs a second with a deadline of an hour each keep one timer in the heap, not millions.
    """

    __slots__ = ("_callback", "_loop", "_timer", "when")

    def __init__(self, loop: Loop, callback: Callback) -> None:
        self._loop = loop
        self._callback = callback
        self._timer: Timer | None = None
        self.when = math.inf

    def set(self, when: float) -> None:
        """Ring once at monotonic `when`, seconds; an earlier setting is forgotten."""
        self.when = when
        timer = self._timer
        if timer is not None and timer.when <= when:
            return
        if timer is not None:
            timer.cancel()
        self._timer = self._loop.call_at(when, self._fire)

    def clear(self) -> None:
        """Do not ring."""
        self.when = math.inf

    def close(self) -> None:
        """Do not ring, and let go of the loop."""
        self.when = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        when = self.when
        if when == math.inf:
            return
        if when > time.monotonic():
            self._timer = self._loop.call_at(when, self._fire)
            return
        self.when = math.inf
        self._callback()
