"""Claims that wait in the pool for a worker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from workerd.job import Claim
from workerd.pool.capacity import MAX_OVERTAKEN_S, MAX_RATED_WAIT_S
from workerd.runtime.loop import Loop, Timer


class ClaimQueue:
    """The claims that no worker has yet, in the order in which they will be assigned.

    `fair`: claims of groups that were idle go ahead of others, if these are not more urgent. `rated`: what
    waits for too long counts as a start that another node could have had, and is handed to `release`.
    """

    def __init__(
        self, loop: Loop, release: Callable[[list[Claim]], None], *, fair: bool, rated: bool
    ) -> None:
        self.waiting: deque[Claim] = deque()
        self._loop = loop
        self._release = release
        self._fair = fair
        self._rated = rated
        self._late_timer: Timer | None = None

    def extend(self, claims: list[Claim]) -> None:
        """Add claims that the dispatcher sent."""
        if self._fair and self.waiting:
            claims = self._let_ahead(claims)
        self.waiting.extend(claims)

    def _let_ahead(self, claims: list[Claim]) -> list[Claim]:
        """Put the claims of groups that were idle, which have one priority, before those that wait.

        Not before those that are more urgent, or wait for long. Returns the others.
        """
        ahead = [claim for claim in claims if claim.is_ahead]
        if not ahead:
            return claims
        since = time.monotonic_ns() - int(MAX_OVERTAKEN_S * 1e9)
        waiting, priority = list(self.waiting), ahead[0].priority
        stay = max((place for place, one in enumerate(waiting, 1) if one.priority < priority), default=0)
        while stay < len(waiting) and (waiting[stay].is_ahead or waiting[stay].mono < since):
            stay += 1
        self.waiting = deque([*waiting[:stay], *ahead, *waiting[stay:]])
        return [claim for claim in claims if not claim.is_ahead]

    def take(self, wanted: Callable[[Claim], bool]) -> list[Claim]:
        """Remove the claims that are wanted, and return them."""
        taken = [claim for claim in self.waiting if wanted(claim)]
        if taken:
            self.waiting = deque(claim for claim in self.waiting if not wanted(claim))
        return taken

    def take_of(self, handlers: Iterable[str]) -> list[Claim]:
        """Remove the claims of these handlers, or all where none is named."""
        names = frozenset(handlers)
        return self.take(lambda claim: not names or claim.handler in names)

    def watch(self) -> None:
        """Release in time what then still waits."""
        if self._rated and self.waiting and self._late_timer is None:
            self._late_timer = self._loop.call_later(MAX_RATED_WAIT_S, self._release_late)

    def _release_late(self) -> None:
        since = time.monotonic_ns() - int(MAX_RATED_WAIT_S * 1e9)
        self._release(self.take(lambda claim: claim.mono < since))
        waits = bool(self.waiting)
        self._late_timer = self._loop.call_later(MAX_RATED_WAIT_S / 2, self._release_late) if waits else None
