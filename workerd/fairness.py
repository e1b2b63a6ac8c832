"""Turns of groups by start-time fair queuing: each gets its share of what is started, by weight. Pure.

Every group has a virtual time at which its next job may start. Starting one moves that by `1 / weight`; the
group with the earliest is next. The turns are remembered between claims, so that single free workers go round
too. A group that had nothing to start has saved up nothing: it begins at the present virtual time.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from workerd.job import AttemptRef

MAX_REMEMBERED = 100_000
"""Groups; beyond it all begin anew."""


class Waiting(NamedTuple):
    """A job that may be started. `run_at`: as text of the store, which sorts as times do."""

    priority: int
    run_at: str
    ref: AttemptRef


class FairTurns:
    """The virtual times of a handler's groups; `virtual` is the start of what was started last."""

    def __init__(self, weights: Mapping[str, int] | None = None, before: FairTurns | None = None) -> None:
        self._weights = weights or {}
        self._before = before
        self._next_starts: dict[str, float] = {}
        self.virtual: float = 0.0 if before is None else before.virtual

    def next_start(self, group: str) -> float:
        """The virtual time at which the group's next job may start."""
        known = self._next_starts.get(group)
        if known is None:
            known = self._before.next_start(group) if self._before is not None else 0.0
        return max(self.virtual, known)

    def was_idle(self, group: str) -> bool:
        """Whether the group had nothing started, or not its share, before this trial began."""
        before = self._before or self
        return before.next_start(group) <= before.virtual

    def charge(self, group: str) -> None:
        """One job of the group was started."""
        start = self.next_start(group)
        self.virtual = start
        self._next_starts[group] = start + 1.0 / self._weights.get(group, 1)

    def trial(self) -> FairTurns:
        """The same turns, for a transaction that may be run again; `adopt` makes them true."""
        return FairTurns(self._weights, self)

    def adopt(self, trial: FairTurns) -> None:
        """What was charged in this trial was started."""
        self.virtual = trial.virtual
        self._next_starts |= trial._next_starts
        if len(self._next_starts) > MAX_REMEMBERED:
            self._forget_idle()

    def _forget_idle(self) -> None:
        """Drop the groups that would begin at the present virtual time anyway; all, if too many are left."""
        later = {group: start for group, start in self._next_starts.items() if start > self.virtual}
        self._next_starts = later if len(later) <= MAX_REMEMBERED // 2 else {}


T = TypeVar("T", bound=Waiting)


def choose(
    queues: Mapping[str, Sequence[T]],
    count: int,
    room: Mapping[str, int],
    turns: FairTurns | None,
    last: int | None = None,
) -> list[tuple[str, T]]:
    """Up to `count` jobs to start, with their groups, in order; each queue is sorted by priority and time.

    Smaller priorities first; among equal ones the group whose turn it is, or without `turns` the oldest.
    `room`: how many of a group may be started, for groups that have less than enough. `last`: no job with a
    greater priority, since others come before it. Charges `turns`.
    """
    left = dict(room)
    heap: list[tuple[int, float, str, str, int]] = []

    def push(group: str, position: int) -> None:
        queue = queues[group]
        if position < len(queue) and left.get(group, 1) > 0:
            head = queue[position]
            if last is not None and head.priority > last:
                return
            start = turns.next_start(group) if turns is not None else 0.0
            heapq.heappush(heap, (head.priority, start, head.run_at, group, position))

    for group in queues:
        push(group, 0)
    chosen: list[tuple[str, T]] = []
    while heap and len(chosen) < count:
        _, _, _, group, position = heapq.heappop(heap)
        chosen.append((group, queues[group][position]))
        if group in left:
            left[group] -= 1
        if turns is not None:
            turns.charge(group)
        push(group, position + 1)
    return chosen
