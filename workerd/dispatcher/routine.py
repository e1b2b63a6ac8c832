"""What is begun and cleaned up in rounds: requests, schedules, chains, retention."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from workerd.config.model import Config
from workerd.dispatcher.agenda import Duty
from workerd.dispatcher.contact import Contact
from workerd.dispatcher.gate import Gate
from workerd.dispatcher.requests import Pickup, Recurring, Sweep
from workerd.dispatcher.retention import Retention, Runs
from workerd.dispatcher.ticks import Catalogue, Chains, Ticking
from workerd.store import schedules

APART = 0.02
"""Seconds between the looks for requests that wake-ups ask for, however many come."""


class Routine:
    """The duties that make rows claimable or remove them; `duties` are for the agenda.

    A node that takes no work (`pickup.enabled = false`) begins none either. `claimable` is told which
    handlers got rows; `busy` says whether claims are being made.
    """

    def __init__(
        self,
        contact: Contact,
        config: Config,
        claimable: Callable[[Iterable[str]], None],
        busy: Callable[[], bool],
    ) -> None:
        workflows, pickup, poll = config.workflows, config.pickup, config.dispatcher.poll
        wanted = schedules.wanted(config)
        self._workflows = frozenset(workflows)
        self._claimable = claimable
        self._looked = 0.0
        self._pickup = Pickup(contact, workflows, Gate(pickup.requests_new), poll, claimable)
        self._recurring = Recurring(contact, workflows.values(), poll, claimable)
        self._chains = Chains(contact, config, claimable)
        self.ticking = Ticking(contact, config, self.announce)
        self.retention = Retention(contact, config.retention, busy)
        self.duties: list[Duty] = [self.retention]
        if pickup.enabled:
            self.duties += [
                Catalogue(contact, wanted, self._on_schedules),
                self.ticking,
                self._chains,
                self._pickup,
                self._recurring,
                Sweep(contact, workflows, Gate(pickup.requests_inprogress), claimable),
                Runs(contact, [name for name, s in wanted.items() if s.cooler is not None]),
            ]

    def announce(self, names: Iterable[str] | None = None) -> None:
        """There are new rows of these handlers and workflows; None: of some that nobody named."""
        if names is not None:
            self._claimable(names)
        if self._workflows and (names is None or not self._workflows.isdisjoint(names)):
            delay = max(0.0, self._looked + APART - time.monotonic())
            self._looked = time.monotonic() + delay
            self._pickup.wake(delay)
            self._recurring.wake(delay)

    def _on_schedules(self) -> None:
        """A schedule was written: its chain may begin."""
        self._chains.wake()
        self._recurring.wake()
