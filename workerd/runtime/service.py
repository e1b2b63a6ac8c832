"""What every role and pool has in common: a loop, and a channel to the supervisor.

A Beat proves progress, not mere life: it is sent from the loop, so a process that is stuck in one turn
sends none and is killed by the watchdog. Work that may take long within one turn and knows that it moves on
(bytes to and from a slow store) shows so by `progressed`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

from workerd.messages import Beat, Drain, LogText, ReadLog, Report, Roster, Series, Stop, ToChild
from workerd.runtime.channel import Channel
from workerd.runtime.child import ORPHANED_EXIT_STATUS, ignore_terminal_signals
from workerd.runtime.limits import own_usage
from workerd.runtime.loop import Loop

MAX_BEAT_INTERVAL_S = 2.0
"""Or a fifth of the watchdog, if that is shorter. Every one wakes two processes."""


class Service:
    """A process under the supervisor; subclasses override `start`, `info` and the `on_…` methods.

    `state`, `trouble`: as in Beat. `roster`: the last one received. The end of the supervisor's channel
    ends the process: an orphan has no right to its claims.
    """

    def __init__(self, control: socket.socket, watchdog: float) -> None:
        ignore_terminal_signals()
        self.loop = Loop()
        self.state = "starting"
        self.trouble = ""
        self.roster = Roster(pools=(), dead=())
        self._beat_interval = min(MAX_BEAT_INTERVAL_S, watchdog / 5)
        self._sent_state: tuple[str, str] | None = None
        self._usage: dict[str, float] = {}
        self._beat_at = 0.0
        self.supervisor: Channel[ToChild] = Channel(
            self.loop, control, ToChild, self._on_control, self.on_orphaned, rank=3
        )

    def run(self) -> int:
        """Serve until the supervisor sends Stop; returns the exit status."""
        self.start()
        self.send_beats()
        self.loop.run()
        with contextlib.suppress(OSError):
            self.supervisor.flush()
        return 0

    # -- for subclasses

    def start(self) -> None:
        """Open sockets and set the first timers."""

    def info(self) -> dict[str, Any]:
        """What `workerd status` shows of this process: numbers, strings, and lists and dicts of them."""
        return {}

    def counted(self) -> list[Series]:
        """What the metrics are to add: all that was counted since the last call."""
        return []

    def on_roster(self, roster: Roster) -> None:
        """A pool started or died."""

    def on_drain(self, drain: Drain) -> None:
        """Take no new jobs, and stop once running ones are done; the default stops now."""
        self.on_stop()

    def on_report(self) -> None:
        """A Beat with fresh numbers is wanted: update what is too costly to do for every Beat."""

    def log_of(self, message: ReadLog) -> LogText:
        """The log of a running job; the default has none."""
        return LogText(token=message.token)

    def on_stop(self) -> None:
        """Finish what is begun, then stop the loop."""
        self.loop.stop()

    def on_orphaned(self) -> None:
        """The supervisor has died; end at once."""
        os._exit(ORPHANED_EXIT_STATUS)

    # -- the channel to the supervisor

    def become(self, state: str, trouble: str = "") -> None:
        """Change the state that the supervisor and `workerd status` see; a change is sent at once."""
        self.state, self.trouble = state, trouble
        if self._sent_state != (state, trouble):
            self.beat()

    def beat(self, token: int = 0, fatal: int = 0) -> None:
        """Send a Beat now."""
        self._sent_state = (self.state, self.trouble)
        self._beat_at = time.monotonic()
        self.supervisor.send(
            Beat(
                self.state,
                self.trouble,
                self.info() | self._usage,
                token=token,
                fatal=fatal,
                counted=self.counted(),
            )
        )

    def progressed(self) -> None:
        """Show progress from inside a turn of the loop: sends a Beat once the last one is an interval old."""
        if time.monotonic() - self._beat_at >= self._beat_interval:
            self.beat()
            self.supervisor.flush()

    def send_beats(self) -> None:
        """Send a Beat now and at every interval from now on."""
        self.beat()
        self.loop.call_later(self._beat_interval, self.send_beats)

    def _on_control(self, message: ToChild) -> None:
        match message:
            case Roster():
                self.roster = message
                self.on_roster(message)
            case Drain():
                self.on_drain(message)
            case Stop():
                self.on_stop()
            case ReadLog():
                self.supervisor.send(self.log_of(message))
            case Report():
                self.on_report()
                self._usage = own_usage()
                self.beat(message.token)
