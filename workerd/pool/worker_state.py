"""The states of a worker process and what may follow on each: one machine, which pool and tests read."""

from __future__ import annotations

from enum import StrEnum


class WorkerState(StrEnum):
    """What a worker is doing; `workerd status` shows it."""

    STARTING = "starting"  # forked, not ready yet
    IDLE = "idle"
    RUNNING = "running"
    INTERRUPTING = "interrupting"  # the soft signal was sent: deadline, cancel, or its pool stops
    DUMPING = "dumping"  # its stacks were requested; then it is killed
    CUT_OFF = "cut off"  # its channel ended: it is dying, else it is killed
    RETIRING = "retiring"  # its channel was closed: it exits by itself
    KILLING = "killing"  # SIGKILL was sent
    DEAD = "dead"


_S = WorkerState
TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    _S.STARTING: frozenset({_S.CUT_OFF, _S.IDLE, _S.RETIRING, _S.KILLING, _S.DEAD}),
    _S.IDLE: frozenset({_S.CUT_OFF, _S.RUNNING, _S.RETIRING, _S.KILLING, _S.DEAD}),
    _S.RUNNING: frozenset({_S.CUT_OFF, _S.IDLE, _S.INTERRUPTING, _S.KILLING, _S.DEAD}),
    _S.INTERRUPTING: frozenset({_S.CUT_OFF, _S.IDLE, _S.DUMPING, _S.KILLING, _S.DEAD}),
    _S.DUMPING: frozenset({_S.IDLE, _S.KILLING, _S.DEAD}),
    _S.CUT_OFF: frozenset({_S.KILLING, _S.DEAD}),
    _S.RETIRING: frozenset({_S.KILLING, _S.DEAD}),
    _S.KILLING: frozenset({_S.DEAD}),
    _S.DEAD: frozenset(),
}

BUSY = frozenset({WorkerState.RUNNING, WorkerState.INTERRUPTING, WorkerState.DUMPING})
"""States in which a worker may be running a job and is not being killed yet."""
