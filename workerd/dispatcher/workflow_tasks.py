"""Requests: begun when new, repaired when left behind, repeated when they recur."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from workerd.config.model import WorkflowConfig
from workerd.dispatcher.claimer import PickupWindow
from workerd.dispatcher.lease import Contact
from workerd.dispatcher.tasks import PeriodicTask, jittered
from workerd.store import requests

BEGIN = 50
"""Requests that one transaction begins."""
SWEEP = 100
"""Requests in progress that one transaction looks at."""
SHARE = 10.0
"""A slice of the sweep is followed by a pause so many times as long."""
SWEEP_PAUSE = 5.0
"""Seconds between sweeps, for what another program or a fault left half done."""

Announce = Callable[[Iterable[str]], None]


class RequestPickup(PeriodicTask):
    """Begins queuing requests of workflows that this node knows, at once or at set times."""

    name = "requests"

    def __init__(
        self,
        contact: Contact,
        workflows: Mapping[str, WorkflowConfig],
        gate: PickupWindow,
        poll: float,
        announce: Announce,
    ) -> None:
        super().__init__()
        self._contact = contact
        self._workflows = workflows
        self._gate = gate
        self._poll = poll
        self._announce = announce

    def work(self) -> float | None:
        """One slice."""
        if not self._workflows:
            return None
        if self._gate.is_open(self._contact.now()):
            picked = self._contact.run(lambda tx: requests.pickup(tx, self._workflows, BEGIN))
            self._announce(picked.handlers)
            if picked.begun >= BEGIN:
                return 0.0
            self._gate.drained()
        return _until_next(self._gate, self._contact, self._poll)


class RequestSweep(PeriodicTask):
    """Moves on the requests in progress that nobody moved; slice after slice, then a pause."""

    name = "sweep of requests"

    def __init__(
        self,
        contact: Contact,
        workflows: Mapping[str, WorkflowConfig],
        gate: PickupWindow,
        announce: Announce,
    ) -> None:
        super().__init__()
        self._contact = contact
        self._workflows = workflows
        self._gate = gate
        self._announce = announce
        self._cursor: str | None = None

    def work(self) -> float:
        """One slice."""
        if not self._gate.is_open(self._contact.now()):
            return _until_next(self._gate, self._contact, SWEEP_PAUSE)
        began = time.monotonic()
        swept = self._contact.run(lambda tx: requests.sweep(tx, self._workflows, SWEEP, self._cursor))
        self._announce(swept.handlers)
        self._cursor = swept.cursor
        if self._cursor is not None:
            # Where requests move on at set times, nobody but the sweep moves them: then without pauses.
            return 0.0 if self._gate.next is not None else SHARE * (time.monotonic() - began)
        self._gate.drained()
        return _until_next(self._gate, self._contact, SWEEP_PAUSE)


class RecurringWorkflows(PeriodicTask):
    """Keeps the runs of workflows with a cooler going, one workflow a slice."""

    name = "recurring workflows"

    def __init__(
        self, contact: Contact, workflows: Iterable[WorkflowConfig], poll: float, announce: Announce
    ) -> None:
        super().__init__()
        self._contact = contact
        self._workflows = [w for w in workflows if w.schedule.cooler is not None]
        self._poll = poll
        self._announce = announce
        self._turn = 0

    def work(self) -> float | None:
        """The next workflow in turn."""
        if not self._workflows:
            return None
        workflow = self._workflows[self._turn]
        self._turn = (self._turn + 1) % len(self._workflows)
        picked = self._contact.run(lambda tx: requests.start_recurring(tx, workflow))
        self._announce(picked.handlers)
        return 0.0 if self._turn else jittered(self._poll)


def _until_next(gate: PickupWindow, contact: Contact, pause: float) -> float:
    """`pause`, or less if the gate opens sooner."""
    seconds = jittered(pause)
    return seconds if gate.next is None else min(seconds, max(0.001, contact.seconds_until(gate.next)))
