"""What every role and pool has in common: its loop, and its line to the supervisor.

The supervisor is told of progress, not of life: a Beat leaves from the loop, so a role that is stuck
in one turn sends none and is killed by the watchdog.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from workerd.messages import Beat, Drain, Report, Roster, Stop, ToChild
from workerd.runtime.channel import Channel
from workerd.runtime.child import ORPHANED_EXIT_STATUS, ignore_terminal_signals
from workerd.runtime.loop import Loop, Timer

BEAT = 1.0
"""Seconds between Beats; a quarter of the watchdog if that is shorter."""


class Service:
    """A process under the supervisor. Subclasses say what they do in the `on_…` methods.

    `state`, `trouble`: see Beat. The end of the supervisor's channel ends the process: an orphan has no
    right to its claims.
    """

    def __init__(self, control: socket.socket, watchdog: float) -> None:
        ignore_terminal_signals()
        self.loop = Loop()
        self.state = "starting"
        self.trouble = ""
        self.roster = Roster(pools=(), dead=())
        self._beat_every = min(BEAT, watchdog / 4)
        self._beat_timer: Timer | None = None
        self._told: tuple[str, str] | None = None
        self.supervisor: Channel[ToChild] = Channel(
            self.loop, control, ToChild, self._on_control, self.on_orphaned, rank=3
        )

    def run(self) -> int:
        """Serve until the supervisor says stop; returns the exit status."""
        self.start()
        self._beat()
        self.loop.run()
        with contextlib.suppress(OSError):
            self.supervisor.flush()
        return 0

    # -- what a role says

    def start(self) -> None:
        """Open sockets and set the first timers."""

    def info(self) -> dict[str, Any]:
        """What `workerd status` shows of this process: numbers, texts, lists and maps of them."""
        return {}

    def on_roster(self, roster: Roster) -> None:
        """Pools came or went."""

    def on_drain(self, seconds: float) -> None:
        """Take nothing new and end by yourself once what runs is done; the default stops now."""
        self.on_stop()

    def on_report(self) -> None:
        """Somebody wants fresh numbers: the place for what is too dear for every Beat."""

    def on_stop(self) -> None:
        """Finish what is begun, then let the loop stop."""
        self.loop.stop()

    def on_orphaned(self) -> None:
        """The supervisor is gone."""
        os._exit(ORPHANED_EXIT_STATUS)

    # -- the line to the supervisor

    def become(self, state: str, trouble: str = "") -> None:
        """Change the state that the supervisor and `workerd status` see; told at once."""
        self.state, self.trouble = state, trouble
        if self._told != (state, trouble):
            self.beat()

    def beat(self, token: int = 0, fatal: int = 0) -> None:
        """Tell the supervisor how it stands, now."""
        self._told = (self.state, self.trouble)
        self.supervisor.send(
            Beat(state=self.state, trouble=self.trouble, info=self.info(), token=token, fatal=fatal)
        )

    def _beat(self) -> None:
        self.beat()
        self._beat_timer = self.loop.call_later(self._beat_every, self._beat)

    def _on_control(self, message: ToChild) -> None:
        match message:
            case Roster():
                self.roster = message
                self.on_roster(message)
            case Drain():
                self.on_drain(message.seconds)
            case Stop():
                self.on_stop()
            case Report():
                self.on_report()
                self.beat(message.token)
