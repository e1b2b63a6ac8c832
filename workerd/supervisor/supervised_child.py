"""One role or pool, whichever process fills it: its state, its deaths, its last words."""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from workerd.messages import Beat, FromChild
from workerd.runtime.child import CRASH_LOOP_EXIT_STATUS, CrashLoopPolicy, ManagedChild
from workerd.runtime.loop import Loop, Timer
from workerd.text import death_text

DYING = 0.2
"""Seconds between the end of a channel and the death that it announces."""


class ChildState(StrEnum):
    """Where a slot stands; `MOVES` says what may follow."""

    EMPTY = "empty"
    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"


MOVES: dict[ChildState, frozenset[ChildState]] = {
    ChildState.EMPTY: frozenset({ChildState.STARTING}),
    ChildState.STARTING: frozenset(
        {ChildState.UP, ChildState.STOPPING, ChildState.BACKOFF, ChildState.QUARANTINED, ChildState.EMPTY}
    ),
    ChildState.UP: frozenset(
        {ChildState.STOPPING, ChildState.BACKOFF, ChildState.QUARANTINED, ChildState.EMPTY}
    ),
    ChildState.STOPPING: frozenset({ChildState.EMPTY}),
    ChildState.BACKOFF: frozenset({ChildState.STARTING, ChildState.EMPTY}),
    ChildState.QUARANTINED: frozenset({ChildState.STARTING, ChildState.EMPTY}),
}

Main = Callable[[socket.socket, int], int]
"""What a child runs: its control channel and its life -> exit status."""


class SupervisedChild:
    """One child of the supervisor: started, watched, reaped; the supervisor decides what follows.

    `on_change`: called after each change of state. `on_death`: called once for each death, after the
    process was reaped and its last Beat read, with its exit status.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        main: Main,
        *,
        silence: float,
        start_silence: float,
        policy: CrashLoopPolicy,
        keep: Callable[[], list[int]],
        on_change: Callable[[SupervisedChild], None],
        on_death: Callable[[SupervisedChild, int], None],
        on_beat: Callable[[SupervisedChild, Beat], None],
    ) -> None:
        self.name = name
        self.policy = policy
        self.state = ChildState.EMPTY
        self.child: ManagedChild[FromChild] | None = None
        self.life = 0
        self.started = 0.0
        self.deaths: Counter[str] = Counter()
        self.said = Beat(state="")
        self.trouble = ""
        self.kill_reason = ""
        self._loop = loop
        self._main = main
        self._silence = silence
        self._start_silence = start_silence
        self._keep = keep
        self._on_change = on_change
        self._on_death = on_death
        self._on_beat = on_beat
        self._heard = 0.0
        self._timer: Timer | None = None

    @property
    def pid(self) -> int:
        """The child's pid, 0 when there is none."""
        return self.child.pid if self.child is not None else 0

    def move(self, state: ChildState) -> None:
        """Change the state; an impossible change is a fault of the supervisor."""
        assert state in MOVES[self.state], f"{self.name}: {self.state} -> {state}"
        self.state = state
        self._on_change(self)

    # -- life

    def start(self, life: int) -> None:
        """Fork the child. EMPTY, BACKOFF or QUARANTINED -> STARTING."""
        self._cancel_timer()
        main = self._main
        self.life = life
        self.child = ManagedChild(
            self._loop,
            lambda control: main(control, life),
            keep=self._keep(),
            incoming=FromChild,
            on_message=self._hear,
            on_eof=self._silent,
            on_death=self._died,
        )
        self.started = self._heard = time.monotonic()
        self.said = Beat(state="starting")
        self.kill_reason = ""
        self.move(ChildState.STARTING)

    def start_later(self, pause: float, start: Callable[[], None]) -> None:
        """Call `start` after `pause` seconds unless something else happens first."""
        self._cancel_timer()
        self._timer = self._loop.call_later(pause, start)

    def send(self, message: msgspec.Struct) -> None:
        """Say something to the child, if there is one."""
        if self.child is not None:
            self.child.send(message)

    def kill(self, reason: str) -> None:
        """SIGKILL, and why; the death is noticed as any other."""
        if self.child is not None:
            self.kill_reason = self.kill_reason or reason
            self.child.kill()

    def retire(self) -> None:
        """Nothing will be started here any more unless somebody says so."""
        self._cancel_timer()
        if self.child is None and self.state is not ChildState.EMPTY:
            self.move(ChildState.EMPTY)

    # -- what it says, and how long it may be silent

    def overdue(self, now: float) -> bool:
        """Whether the child made no progress for longer than it may."""
        if self.child is None:
            return False
        limit = self._start_silence if self.said.state == "starting" else self._silence
        return now - self._heard > limit

    def was_killed_at_work(self, status: int) -> bool:
        """Whether somebody else sent the SIGKILL of which a child died that had finished starting."""
        at_work = self.said.state not in ("", "starting", "failed")
        return status == -signal.SIGKILL and not self.kill_reason and at_work

    def excuse(self) -> None:
        """Count its silence from now."""
        self._heard = time.monotonic()

    def _hear(self, beat: Beat) -> None:
        self._heard = time.monotonic()
        self.said = beat
        if beat.trouble:
            self.trouble = beat.trouble
        elif beat.state == "up":
            self.trouble = ""
        if self.state is ChildState.STARTING and beat.state == "up":
            self.move(ChildState.UP)
        self._on_beat(self, beat)

    def _silent(self) -> None:
        # A dying process closes its descriptors a moment before its status is there; only one that
        # lives on without its channel is a fault (law 3).
        life = self.life
        self._loop.call_later(
            DYING, lambda: self.kill("closed its channel to the supervisor") if self.life == life else None
        )

    def _died(self) -> None:
        assert self.child is not None
        status = self.child.reap()
        if status is None:
            return
        self.child = None
        self._on_death(self, status)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- for people

    def describe(self) -> dict[str, Any]:
        """What `workerd status` shows of this slot."""
        alive = self.child is not None
        return {
            "state": self.said.state
            if alive and self.said.state not in ("", "up", "starting")
            else self.state,
            "pid": self.pid or None,
            "since": round(time.monotonic() - self.started, 3) if alive else None,
            "restarts": sum(self.deaths.values()),
            "restart_reasons": dict(self.deaths),
            "trouble": self.trouble,
            **self.said.info,
        }


def death_sentence(status: int, kill_reason: str) -> tuple[str, str]:
    """(reason for the metrics, words for a person) of an exit status."""
    if kill_reason:
        return "killed", f"was killed by the supervisor: it {kill_reason}"
    if status == CRASH_LOOP_EXIT_STATUS:
        return "crash_loop", "ended because its workers die without having a job"
    return "signal" if status < 0 else "exit", death_text(status)
