"""The states of a worker as its pool sees it, as data."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What a worker is doing; `workerd status` shows it."""

    STARTING = "starting"  # forked, not ready yet
    IDLE = "idle"
    RUNNING = "running"
    INTERRUPTING = "interrupting"  # the soft signal was sent: deadline or cancel
    DUMPING = "dumping"  # its stacks are being asked for; then it is killed
    CUT_OFF = "cut off"  # its channel has ended; it is dying, or else a fault and killed
    RETIRING = "retiring"  # its channel was closed: it ends by itself
    KILLING = "killing"  # SIGKILL was sent
    DEAD = "dead"


MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.CUT_OFF, State.IDLE, State.RETIRING, State.KILLING, State.DEAD}),
    State.IDLE: frozenset({State.CUT_OFF, State.RUNNING, State.RETIRING, State.KILLING, State.DEAD}),
    State.RUNNING: frozenset({State.CUT_OFF, State.IDLE, State.INTERRUPTING, State.KILLING, State.DEAD}),
    State.INTERRUPTING: frozenset({State.CUT_OFF, State.IDLE, State.DUMPING, State.KILLING, State.DEAD}),
    State.DUMPING: frozenset({State.IDLE, State.KILLING, State.DEAD}),
    State.CUT_OFF: frozenset({State.KILLING, State.DEAD}),
    State.RETIRING: frozenset({State.KILLING, State.DEAD}),
    State.KILLING: frozenset({State.DEAD}),
    State.DEAD: frozenset(),
}

BUSY = frozenset({State.RUNNING, State.INTERRUPTING, State.DUMPING})
"""States in which a worker may be at a job and is not being killed yet."""


class Verdict(StrEnum):
    """Why the pool killed a worker, which decides how its attempt ended."""

    NONE = ""  # it was not killed by the pool
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    OOM = "oom"
    FAULT = "fault"  # it broke the rules of its channel
    LOAD_TIMEOUT = "load timeout"
    NOT_READY = "not ready"  # it said that it could not load
    RETIRED = "retired"  # it had nothing left to do
