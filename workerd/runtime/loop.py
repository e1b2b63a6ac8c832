"""The event loop of a single-threaded process: descriptors, timers, signals.

Not asyncio: a forked child must inherit nothing that has a life of its own, the order of events within a
turn matters (a worker's output is read before its result), and the whole loop can be read in minutes.
"""

from __future__ import annotations

import heapq
import itertools
import math
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator

Callback = Callable[[], None]

MAX_WAIT_S = 60.0
"""A loop wakes at least this often."""


class Timer:
    """One pending call."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Do not make the call."""
        self.callback = None


class _Watch:
    __slots__ = ("events", "on_read", "on_write", "rank")

    def __init__(self) -> None:
        self.on_read: Callback | None = None
        self.on_write: Callback | None = None
        self.rank = 0
        self.events = 0


class Loop:
    """epoll, a heap of timers, and callbacks at the end of a turn.

    Within one turn, descriptors of a lower `rank` are served before those of a higher one. Nothing blocks
    but `epoll_wait`.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._at_end: deque[Callback] = deque()
        self._running = False
        self._signal_reader: socket.socket | None = None
        self._signal_writer: socket.socket | None = None
        self._signal_callbacks: dict[int, Callback] = {}
        self.on_error: Callable[[Exception], None] | None = None
        self.turns = 0
        self._rest_s = 0.0

    def fileno(self) -> int:
        """The epoll descriptor: readable when there is something to do, for an outer loop."""
        return self._epoll.fileno()

    # -- descriptors

    def on_readable(self, fd: int, callback: Callback | None, rank: int = 1) -> None:
        """Call back whenever `fd` can be read or has hung up; None stops watching."""
        watch = self._watches.setdefault(fd, _Watch())
        watch.on_read = callback
        watch.rank = rank
        self._apply(fd, watch)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever `fd` can be written; None stops watching."""
        watch = self._watches.setdefault(fd, _Watch())
        watch.on_write = callback
        self._apply(fd, watch)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; to be called before the descriptor is closed."""
        watch = self._watches.pop(fd, None)
        if watch is not None and watch.events:
            self._epoll.unregister(fd)

    def _apply(self, fd: int, watch: _Watch) -> None:
        events = (select.EPOLLIN if watch.on_read else 0) | (select.EPOLLOUT if watch.on_write else 0)
        if events == watch.events:
            return
        if not events:
            self._epoll.unregister(fd)
        elif watch.events:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        watch.events = events

    # -- time

    def call_at(self, when: float, callback: Callback) -> Timer:
        """Call back once at monotonic `when`, seconds."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._count), timer))
        return timer

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Call back once in `delay` seconds."""
        return self.call_at(time.monotonic() + delay, callback)

    def run_steps(self, steps: Iterator[None], interval: float) -> None:
        """Run a procedure that yields wherever it waits; it is resumed every `interval` seconds."""
        try:
            next(steps)
        except StopIteration:
            return
        self.call_later(interval, lambda: self.run_steps(steps, interval))

    def at_end_of_turn(self, callback: Callback) -> None:
        """Call back once, after the events of this turn, when buffered writes leave together."""
        self._at_end.append(callback)

    def rest(self, seconds: float) -> None:
        """Look for events again only after so long, at most until the next timer: more of them come at once.

        For the present turn. epoll itself would wake at the first event, and count whole milliseconds.
        """
        self._rest_s = seconds

    # -- signals

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Call back from the loop after the signal came; its handler itself does nothing."""
        if self._signal_reader is None:
            self._signal_reader, self._signal_writer = socket.socketpair()
            self._signal_reader.setblocking(False)
            self._signal_writer.setblocking(False)
            signal.set_wakeup_fd(self._signal_writer.fileno(), warn_on_full_buffer=False)
            self.on_readable(self._signal_reader.fileno(), self._read_signals, rank=0)
        self._signal_callbacks[signum] = callback
        signal.signal(signum, _ignore)

    def _read_signals(self) -> None:
        assert self._signal_reader is not None
        try:
            numbers = self._signal_reader.recv(4096)
        except BlockingIOError:
            return
        for signum in numbers:
            callback = self._signal_callbacks.get(signum)
            if callback is not None:
                callback()

    # -- running

    def run(self) -> None:
        """Turn until `stop` is called.

        An exception in a callback ends the process unless `on_error` handles it: a role is better
        restarted, but the supervisor must go on.
        """
        self._running = True
        while self._running:
            try:
                self.turn(MAX_WAIT_S)
            except Exception as error:
                if self.on_error is None:
                    raise
                self.on_error(error)

    def stop(self) -> None:
        """Make `run` return at the end of this turn."""
        self._running = False

    def turn(self, max_wait: float) -> None:
        """Wait at most `max_wait` seconds for events, and handle all that are ready."""
        self._flush()
        self.turns += 1
        for fd, events in self._wait(max_wait):
            watch = self._watches.get(fd)
            if watch is None:  # an earlier callback of this turn forgot it
                continue
            if watch.on_read is not None and events & ~select.EPOLLOUT:
                watch.on_read()
            if watch.on_write is not None and events & select.EPOLLOUT:
                watch.on_write()
        self._run_timers()
        self._flush()

    def time_to_timer(self, max_wait: float) -> float:
        """Seconds until a timer is due, at most `max_wait`: how long an outer loop may sleep."""
        if not self._timers:
            return max_wait
        return min(max_wait, max(0.0, self._timers[0][0] - time.monotonic()))

    def _wait(self, max_wait: float) -> list[tuple[int, int]]:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            max_wait = min(max_wait, self._timers[0][0] - time.monotonic())
        if self._rest_s:
            time.sleep(max(0.0, min(self._rest_s, max_wait)))
            max_wait -= self._rest_s
            self._rest_s = 0.0
        try:
            # epoll counts whole milliseconds and Python rounds up, so a timer is never early.
            ready = self._epoll.poll(max(0.0, max_wait))
        except InterruptedError:
            return []
        if len(ready) > 1:
            watches = self._watches
            ready.sort(key=lambda pair: watches[pair[0]].rank if pair[0] in watches else 0)
        return ready

    def _run_timers(self) -> None:
        if not self._timers:
            return
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()

    def _flush(self) -> None:
        while self._at_end:
            self._at_end.popleft()()

    def close(self) -> None:
        """Release the loop's own descriptors."""
        if self._signal_reader is not None and self._signal_writer is not None:
            signal.set_wakeup_fd(-1)
            self._signal_reader.close()
            self._signal_writer.close()
        self._epoll.close()


def _ignore(signum: int, frame: object) -> None:
    """The signal is in the wake-up descriptor; Python writes it there only if a handler exists."""


class Alarm:
    """A time at which `callback` is called; setting it again moves it.

    A timer that is pending for an earlier time stays, and is set anew when it fires: a thousand jobs a
    second with a deadline of an hour each keep one timer in the heap, not millions.
    """

    __slots__ = ("_callback", "_loop", "_timer", "when")

    def __init__(self, loop: Loop, callback: Callback) -> None:
        self._loop = loop
        self._callback = callback
        self._timer: Timer | None = None
        self.when = math.inf

    def set(self, when: float) -> None:
        """Call back once at monotonic `when`, seconds, and not at an earlier setting."""
        self.when = when
        timer = self._timer
        if timer is not None and timer.when <= when:
            return
        if timer is not None:
            timer.cancel()
        self._timer = self._loop.call_at(when, self._fire)

    def clear(self) -> None:
        """Do not call back."""
        self.when = math.inf

    def close(self) -> None:
        """Do not call back, and remove the timer from the loop."""
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
