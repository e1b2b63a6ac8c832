"""Walks through queues in which few groups stand in front, to find the jobs of others between them."""

from __future__ import annotations

import time
from collections import Counter

from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.tasks import TaskRunner
from workerd.store import hidden_groups
from workerd.store.hidden_groups import Place

PAUSE_S = 0.03
"""Pause between steps of a queue's first walk: 17,000 rows/s."""
LATER_PAUSE_S = 0.1
"""Pause between steps of later walks: except in a flood, claims saw the jobs that came since the last one."""
AGAIN_S, LONGEST_AGAIN_S = 1.0, 30.0
"""Pause between walks, from the first to the second value: doubled after each walk that found nothing."""
MAX_PARKED = 1000
"""Jobs of one group that one walk moves."""
FORGET_S = 10.0
"""A walk paused for longer than this starts over."""


class _Walk:
    """How far the walks through one queue have come."""

    def __init__(self, due: float) -> None:
        self.place: Place | None = None
        self.due = due  # monotonic seconds
        self.pause_s = PAUSE_S
        self.again_s = AGAIN_S
        self.parked: Counter[str] = Counter()

    def end(self) -> None:
        """It has come to the end of the queue."""
        self.again_s = AGAIN_S if self.parked else min(2 * self.again_s, LONGEST_AGAIN_S)
        self.parked.clear()
        self.pause_s = LATER_PAUSE_S


class HiddenGroups:
    """Walks for as long as claims are made and see few groups in front."""

    def __init__(
        self, tasks: TaskRunner, store: MonitoredStore, claimer: Claimer, limited: LimitedHandlers
    ) -> None:
        self._store = store
        self._claimer = claimer
        self._limited = limited
        self._walks: dict[str, _Walk] = {}
        limited.on_hiding = lambda: tasks.wake(self.walk)

    def walk(self) -> float | None:
        """One step through one queue; returns when the next is due, None while nothing can be hidden."""
        now = time.monotonic()
        hiding = self._limited.hiding(now)
        self._walks = {name: walk for name, walk in self._walks.items() if now - walk.due < FORGET_S}
        if not hiding:
            return None
        walks = {name: self._walks.setdefault(name, _Walk(now)) for name in hiding}
        name, walk = min(walks.items(), key=lambda item: item[1].due)
        if walk.due <= now:
            self._step(name, walk, hiding[name], now)
        return max(0.0, min(walk.due for walk in walks.values()) - now)

    def _step(self, handler: str, walk: _Walk, in_front: frozenset[str], now: float) -> None:
        passed = in_front | {group for group, count in walk.parked.items() if count >= MAX_PARKED}
        known = self._limited.handler(handler)
        step = self._store.run(lambda tx: hidden_groups.walk(tx, known, passed, walk.place))
        walk.place = step.place
        walk.parked.update({group: len(jobs) for group, jobs in step.parked.items()})
        if step.parked:
            self._limited.found(handler, step.parked)
            self._claimer.announce([handler])
        if walk.place is None:
            walk.end()
            walk.due = now + walk.again_s
        else:
            walk.due = now + walk.pause_s
