"""Periodic tasks and the runner that does one slice of one task per turn of the loop."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Container, Sequence

from workerd.errors import StoreAway, StoreBusy, StoreError, UnreadableRow
from workerd.log import get_logger
from workerd.runtime.loop import Loop, Timer

NEVER = math.inf
BUSY_PAUSE_S = 1.0
"""Pause of a task that lost its locks to other transactions."""
AWAY_PAUSE_S = 0.1
"""Pause of a task for which the store is repeatedly unavailable; doubled each time."""
MAX_DOUBLINGS = 10
"""More than reach REFUSED_PAUSE_S, and few enough for a float."""
REFUSED_PAUSE_S = 5.0
"""Pause of a task whose statement the store refused, or that failed because of a bug."""

_BUSY_ADVICE = "find and end the long-running transaction."
_REFUSED_ADVICE = "check the privileges of the store user, and triggers and constraints on its tables."
_ROW_ADVICE = "correct or delete it."
_BUG_ADVICE = "this is a bug in workerd; its log has the traceback."

Run = Callable[[], float | None]
"""Does one slice; returns seconds until the next, or None: after the period, or when woken."""


def jittered(seconds: float) -> float:
    """`seconds` give or take 10 %, so that nodes started together do not poll together."""
    return seconds * random.uniform(0.9, 1.1)


class PeriodicTask:
    """One row of the table of tasks.

    run
        Does one slice: at most one short transaction, so that channels are read and Beats are sent however
        slow the store is.
    period_s
        Pause, give or take 10 %, after a slice that returned None; without a period it sleeps until woken.
    needs_lease
        Whether it waits while the store is unavailable or the node is not registered.
    on_demand
        Whether it runs only when woken by name, not whenever the node (re)gains its lease.
    away_count
        How often in a row it found the store unavailable.
    not_before
        Monotonic seconds before which it does not run again, even if it is woken.
    """

    __slots__ = ("away_count", "due", "name", "needs_lease", "not_before", "on_demand", "period_s", "run")

    def __init__(
        self,
        name: str,
        run: Run,
        period_s: float | None = None,
        *,
        needs_lease: bool = True,
        on_demand: bool = False,
    ) -> None:
        self.name = name
        self.run = run
        self.period_s = period_s
        self.needs_lease = needs_lease
        self.on_demand = on_demand
        self.due = NEVER
        self.away_count = 0
        self.not_before = 0.0


class TaskRunner:
    """Runs the task that has been due longest, one slice per turn of the loop, so that none starves another.

    `troubles`: why tasks failed the last time, by name, as sentences for `workerd status`.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._tasks: Sequence[PeriodicTask] = ()
        self._leaseless: Sequence[PeriodicTask] = ()
        self._by_run: dict[Run, PeriodicTask] = {}
        self._timer: Timer | None = None
        self._armed_for = NEVER
        self._stopped = False
        self._log = get_logger("dispatcher")
        self.troubles: dict[str, str] = {}

    def start(
        self,
        tasks: Sequence[PeriodicTask],
        is_blocked: Callable[[], bool],
        on_unavailable: Callable[[], None],
        on_trouble: Callable[[], None],
    ) -> None:
        """Run these tasks from now on, each when it is woken first; at least one of them needs no lease.

        While `is_blocked`, only those that need no lease run. `on_unavailable` is called when a task found
        the store unavailable, `on_trouble` when `troubles` changed.
        """
        self._tasks = tasks
        self._leaseless = [task for task in tasks if not task.needs_lease]
        self._by_run = {task.run: task for task in tasks}
        self._is_blocked = is_blocked
        self._on_unavailable = on_unavailable
        self._on_trouble = on_trouble

    def wake(self, run: Run, delay_s: float = 0.0) -> None:
        """Run the task of this function in `delay_s`, or sooner if it is due sooner; it may wake itself.

        A function that is not in the table stays asleep: this node has no such task.
        """
        task = self._by_run.get(run)
        if task is not None:
            self._wake(task, delay_s)

    def wake_all(self) -> None:
        """Run every task now, except those on demand and those that need no lease."""
        now = time.monotonic()
        for task in self._tasks:
            if task.needs_lease and not task.on_demand:
                task.due = min(task.due, max(now, task.not_before))
        self._arm()

    def keep_only(self, names: Container[str]) -> None:
        """Forget every other task."""
        self._tasks = [task for task in self._tasks if task.name in names]
        self._leaseless = [task for task in self._tasks if not task.needs_lease]
        self._by_run = {task.run: task for task in self._tasks}
        for name in [name for name in self.troubles if name not in names]:
            del self.troubles[name]

    def report(self, name: str, error: StoreError) -> None:
        """Show in `workerd status` that a part of a task failed, which does not pause it, until `clear`."""
        if self.troubles.get(name) != _trouble(name, error):
            self._note_failure(name, error)

    def clear(self, name: str) -> None:
        """The part that failed works again, or no longer exists."""
        if self.troubles.pop(name, None) is not None:
            self._on_trouble()

    def stop(self) -> None:
        """Run nothing more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self, task: PeriodicTask, delay_s: float) -> None:
        when = max(time.monotonic() + delay_s, task.not_before)
        if when < task.due:
            task.due = when
            self._arm()

    def _arm(self) -> None:
        """Set the timer for the next task."""
        if self._stopped:
            return
        when = self._next().due
        if self._timer is not None:
            if when == self._armed_for:
                return
            self._timer.cancel()
            self._timer = None
        if when < NEVER:
            self._armed_for = when
            # Never in the past: the timer would fire within this turn, and the loop is to turn first.
            self._timer = self._loop.call_at(max(when, time.monotonic()), self._turn)

    def _next(self) -> PeriodicTask:
        leaseless = min(self._leaseless, key=_due)
        if leaseless.due <= time.monotonic() or self._is_blocked():
            return leaseless
        return min(self._tasks, key=_due)

    def _turn(self) -> None:
        self._timer = None
        task = self._next()
        if task.due <= time.monotonic():
            task.due = NEVER
            self._run(task)
        self._arm()

    def _run(self, task: PeriodicTask) -> None:
        try:
            delay_s = task.run()
        except StoreBusy as error:
            self._note_failure(task.name, error)
            delay_s = jittered(BUSY_PAUSE_S)
        except StoreAway:
            self._on_unavailable()
            # As soon as the store is available again; later each time if only this task finds that it is not.
            pause_s = min(REFUSED_PAUSE_S, AWAY_PAUSE_S * (2 ** min(task.away_count, MAX_DOUBLINGS) - 1))
            task.not_before = time.monotonic() + pause_s
            task.away_count += 1
            delay_s = 0.0
        except Exception as error:
            self._note_failure(task.name, error)
            delay_s = REFUSED_PAUSE_S
        else:
            task.away_count = 0
            self.clear(task.name)
            if delay_s is None:
                if task.period_s is None:
                    return
                delay_s = jittered(task.period_s)
        self._wake(task, delay_s)

    def _note_failure(self, name: str, error: Exception) -> None:
        if isinstance(error, StoreBusy):
            if name not in self.troubles:
                self._log.warning("task.blocked", task=name, error=str(error))
        elif isinstance(error, StoreError):
            self._log.error("task.refused", task=name, error=str(error))
        else:
            self._log.exception("task.crashed", task=name, retry_in_s=REFUSED_PAUSE_S)
        self.troubles[name] = _trouble(name, error)
        self._on_trouble()


def _trouble(name: str, error: Exception) -> str:
    if isinstance(error, StoreBusy):
        return f"The task {name} is blocked by locks ({error}); {_BUSY_ADVICE}"
    if isinstance(error, UnreadableRow):
        return f"The task {name} found a row that it cannot read ({error}); {_ROW_ADVICE}"
    if isinstance(error, StoreError):
        return f"The store rejects the task {name} ({error}); {_REFUSED_ADVICE}"
    return f"The task {name} failed ({type(error).__name__}: {error}); {_BUG_ADVICE}"


def _due(task: PeriodicTask) -> float:
    return task.due
