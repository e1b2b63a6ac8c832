"""One role or pool under the supervisor: its process, its state, its last Beat, its deaths."""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import partial
from typing import Any

import msgspec

from workerd.messages import Beat, FromChild, LogText
from workerd.runtime.child import CRASH_LOOP_EXIT_STATUS, CrashLoopPolicy, ManagedChild
from workerd.runtime.loop import Loop, Timer
from workerd.supervisor.patience import Patience
from workerd.text import death_text

EOF_TO_DEATH_S = 0.2
"""A child whose channel ended is killed if it is not dead by then."""
SHOWN_SILENCE_S = 5.0
"""Its Beats come every two seconds at the latest."""
LOADING_LIMIT_S = 1.0
"""For a pool that is to stop while it imports its handlers: it has no jobs yet, and reads no message."""


class ChildState(StrEnum):
    """The state of a supervised child; `MOVES` holds the possible changes."""

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
"""What a child runs: (its end of the control channel, its life) -> exit status."""


class SupervisedChild:
    """A child that may be started again and again; its owner decides when.

    `name`: as displayed. `pool`: the pool's name, empty for a role. `generation`: of the pool.
    `last_pid`: of its present or last process. `greeting`: sent at every start. `silence_s`: how long it
    may send no Beat; `start_silence_s`: the same until it has started.

    Its owner's callbacks: `on_change` after each change of state, `on_death` with the wait status once
    for each death, when the process is reaped and its last Beat read, `on_beat` for each Beat,
    `on_log` for each LogText.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        main: Main,
        *,
        pool: str = "",
        generation: int = 1,
        silence_s: float,
        start_silence_s: float,
        crash_loop: CrashLoopPolicy,
        on_change: Callable[[], None],
        on_death: Callable[[SupervisedChild, int], None],
        on_beat: Callable[[SupervisedChild, Beat], None],
        on_log: Callable[[SupervisedChild, LogText], None] = lambda child, message: None,
    ) -> None:
        self.name = name
        self.pool = pool
        self.generation = generation
        self.start_silence_s = start_silence_s
        self.crash_loop = crash_loop
        self.state = ChildState.EMPTY
        self.greeting: msgspec.Struct | None = None
        self.life = self.last_pid = 0
        self.started_at = 0.0
        self.deaths: Counter[str] = Counter()
        self.last_death = ""
        self.last_beat = Beat(state="")
        self._beat_at = time.monotonic()
        self.trouble = ""
        self._loop = loop
        self._main = main
        self._silence_s = silence_s
        self._on_change = on_change
        self._on_death = on_death
        self._on_beat = on_beat
        self._on_log = on_log
        self._process: ManagedChild[FromChild] | None = None
        self._kill_reason = ""
        self._patience = Patience(0.0)
        self._restart_timer: Timer | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a process, though it may be ending."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The pid of the process, 0 without one."""
        return self._process.pid if self._process is not None else 0

    def move(self, state: ChildState) -> None:
        """Change the state; an impossible change is a bug of the supervisor."""
        assert state in MOVES[self.state], f"{self.name}: {self.state} -> {state}"
        self.state = state
        self._on_change()

    # -- life

    def start(self, life: int, keep: Iterable[int]) -> None:
        """Fork the process; it inherits the descriptors `keep`. Raises OSError."""
        self._cancel_restart()
        main = self._main
        self._process = ManagedChild(
            self._loop,
            lambda control: main(control, life),
            keep=keep,
            incoming=FromChild,
            on_message=self._on_message,
            on_eof=self._on_eof,
            on_death=self._on_exit,
        )
        self.life, self.last_pid = life, self._process.pid
        self.started_at = time.monotonic()
        self._patience.heard(self.started_at)
        self.last_beat = Beat(state="starting")
        self._kill_reason = ""
        if self.greeting is not None:
            self.send(self.greeting)
        self.move(ChildState.STARTING)

    def restart_later(self, pause: float, start: Callable[[SupervisedChild], None]) -> None:
        """Call `start` in `pause` seconds unless the child is stopped first."""
        self._cancel_restart()
        self._restart_timer = self._loop.call_later(pause, lambda: start(self))

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message to the process, if there is one."""
        if self._process is not None:
            self._process.send(message)

    def stop(self, message: msgspec.Struct, limit: float) -> None:
        """Send `message`, which makes it exit; kill it after `limit` seconds. It is not restarted."""
        self._cancel_restart()
        if self._process is None:
            if self.state is not ChildState.EMPTY:
                self.move(ChildState.EMPTY)
            return
        if self.state is not ChildState.STOPPING:
            self.move(ChildState.STOPPING)
        self.send(message)
        self._kill_later(limit, f"did not end within {limit:g} s")
        if self._is_loading:
            self._loop.call_later(LOADING_LIMIT_S, partial(self._kill_if_loading, self.life))

    def kill(self, reason: str) -> None:
        """Send SIGKILL; `reason` completes "it …" in the log. The death is handled like any other."""
        if self._process is not None:
            self._kill_reason = self._kill_reason or reason
            self._process.kill()

    def _kill_if_loading(self, life: int) -> None:
        if self.life == life and self._is_loading:
            self.kill("was still loading its handlers")

    def _kill_later(self, delay: float, reason: str) -> None:
        life = self.life
        self._loop.call_later(delay, lambda: self.kill(reason) if self.life == life else None)

    def _cancel_restart(self) -> None:
        if self._restart_timer is not None:
            self._restart_timer.cancel()
            self._restart_timer = None

    @property
    def _retry_in_s(self) -> float | None:
        """Seconds until it is started again, None unless it waits for that."""
        timer = self._restart_timer
        if timer is None or self.state not in (ChildState.BACKOFF, ChildState.QUARANTINED):
            return None
        return round(max(0.0, timer.when - time.monotonic()), 1)

    # -- Beats and silence

    def overdue(self, now: float) -> bool:
        """Whether its Beats have stopped for longer than they may; `now`: monotonic seconds."""
        return self._process is not None and self._patience.silence(now) > self.silence_limit_s

    @property
    def silence_limit_s(self) -> float:
        """How long it may send no Beat in its present state."""
        return self.start_silence_s if self.last_beat.state == "starting" else self._silence_s

    def watch(self, lateness: float) -> None:
        """Take note of how late the supervisor ran, and of how long the child waited for a processor."""
        if self._process is not None:
            self._patience.watch(lateness, self.pid)

    def excuse(self) -> None:
        """Count its silence from now on."""
        self._patience.heard(time.monotonic())

    def was_killed_by_us(self, status: int) -> bool:
        """Whether the supervisor killed the process that ended with this wait status."""
        return status == -signal.SIGKILL and bool(self._kill_reason)

    def was_killed_at_work(self, status: int) -> bool:
        """Whether a process that had started died of a SIGKILL that the supervisor did not send."""
        at_work = self.last_beat.state not in ("", "starting", "failed")
        return status == -signal.SIGKILL and not self._kill_reason and at_work

    def _on_message(self, message: FromChild) -> None:
        if isinstance(message, LogText):
            self._on_log(self, message)
        else:
            self._on_beat_received(message)

    def _on_beat_received(self, beat: Beat) -> None:
        self._beat_at = time.monotonic()
        self._patience.heard(self._beat_at)
        self.last_beat = beat
        # That it loads its handlers once more says less than what became of it the last time.
        if beat.trouble and not (self._is_loading and self.trouble):
            self.trouble = beat.trouble
        elif beat.state == "up":
            self.trouble = ""
        if self.state is ChildState.STARTING and beat.state == "up":
            self.move(ChildState.UP)
        self._on_beat(self, beat)

    def _on_eof(self) -> None:
        # A dying process closes its channel a moment before it can be reaped; one that lives on without
        # its channel is at fault (law 3: one writer, one reader).
        self._kill_later(EOF_TO_DEATH_S, "closed its channel to the supervisor")

    # -- death

    def _on_exit(self) -> None:
        assert self._process is not None
        status = self._process.reap()
        if status is None:
            return
        self._process = None
        reason, sentence = self._describe_death(status)
        self.last_death = f"{self.name} {sentence}"
        if self.state is not ChildState.STOPPING:
            self.deaths[reason] += 1
            has_said_why = self.trouble and self.last_beat.state in ("starting", "failed")
            if not has_said_why or self._is_loading:
                self.trouble = self.last_death
        self._on_death(self, status)

    @property
    def _is_loading(self) -> bool:
        """Whether it is, or was at its end, a pool that imports its handlers: it has no workers before."""
        beat = self.last_beat
        return bool(self.pool) and beat.state == "starting" and "workers" not in beat.info

    def _describe_death(self, status: int) -> tuple[str, str]:
        """(reason for the metrics, predicate for people) of a wait status."""
        if self._kill_reason:
            return "killed", f"was killed by the supervisor: it {self._kill_reason}"
        if status == CRASH_LOOP_EXIT_STATUS:
            return "crash_loop", "ended because its workers die without having a job"
        sentence = death_text(status)
        if self._is_loading:
            too_long = status == -signal.SIGALRM
            death = "it took longer than `load_timeout`" if too_long else f"it {sentence}"
            sentence = f"ended while its handlers were loaded: {death}"
        return "signal" if status < 0 else "exit", sentence

    def describe(self) -> dict[str, Any]:
        """The child's part of the document of `workerd status`. `silence`: seconds since its last Beat."""
        said, now = self.last_beat.state, time.monotonic()
        troubles = [self.trouble]
        if self.alive and said != "starting" and self._patience.silence(now) > SHOWN_SILENCE_S:
            troubles.append(f"it makes no progress, and is killed after {self.silence_limit_s:g} s of that")
        return {
            "state": said if self.alive and said not in ("", "up", "starting") else self.state,
            "pid": self.pid or None,
            "since": round(time.monotonic() - self.started_at, 3) if self.alive else None,
            "restarts": sum(self.deaths.values()),
            "restart_reasons": dict(self.deaths),
            "retry_in_s": self._retry_in_s,
            "silence": round(now - self._beat_at, 3),
            "trouble": "; ".join(filter(None, troubles)),
            **self.last_beat.info,
        }
