"""Whether a role can use the store: one log line for each state, and the pause before the next probe."""

from __future__ import annotations

import random
import time
from enum import StrEnum

from workerd.errors import CommitUnknown, StoreAway, StoreError
from workerd.log import get_logger
from workerd.store.base import Store
from workerd.store.mysql_errors import READ_ONLY

FIRST_PROBE_S, LONGEST_PROBE_S = 0.1, 0.5
"""Pause between two probes of an unavailable store: doubled from the first to the longest."""
STARTUP_GRACE_S = 1.0
"""An outage that begins with the role is not logged before: the store may be starting or migrated too."""
SETTLING_S = 5.0
"""An outage that begins within this time after another one belongs to it: its end is logged once it lasts."""


class CommitHangs(StoreAway):
    """The store answers what reads, and no COMMIT."""


class Obstacle(StrEnum):
    """What keeps a store from being used."""

    SILENT = "silent"
    READ_ONLY = "read-only"
    COMMIT = "commit"
    REFUSING = "refusing"


def obstacle_of(error: StoreError) -> Obstacle:
    """What keeps the store from being used, by the error that said so."""
    if isinstance(error, CommitHangs):
        return Obstacle.COMMIT
    if isinstance(error, StoreAway) and not error.answered:
        return Obstacle.SILENT
    code = error.code if isinstance(error, StoreAway) else 0
    return Obstacle.READ_ONLY if code in READ_ONLY else Obstacle.REFUSING


def advice(error: StoreError) -> str:
    """What a person should know of a store that cannot be used: what is wrong, and what to look at."""
    words = str(error).rstrip(".")
    told = words.startswith("The store")
    if obstacle_of(error) is Obstacle.SILENT:
        told = told and "does not answer" in words
        sentence = words if told else f"The store does not answer ({words})"
        return f"{sentence}; check that it is running and reachable; work resumes by itself when it is back."
    sentence = words if told else f"The store answers but cannot be used ({words})"
    return f"{sentence}; work resumes by itself when it can be written again."


class StoreAvailability:
    """The availability of the store as one role sees it; a store never asked counts as available.

    error
        Why the store is unavailable, None while it is available.
    since
        Monotonic seconds at which it became what it is.
    logged
        Whether the present outage was logged.
    """

    def __init__(self, role: str, store: Store) -> None:
        self.error: StoreError | None = None
        self.since = time.monotonic()
        self.logged = False
        self._store = store
        self._server = ""
        self._told: set[Obstacle] = set()
        self._reads_answer = False
        self._restored_at: float | None = None
        self._flapping = False
        self._outage_since = self.since
        self._grace_until = self.since + STARTUP_GRACE_S
        self._pause = FIRST_PROBE_S
        self._log = get_logger(role)

    @property
    def available(self) -> bool:
        return self.error is None

    def is_as(self, former: StoreError) -> bool:
        """Whether the store is kept from being used by the same as when it failed with `former`."""
        return self.error is not None and obstacle_of(self.error) is obstacle_of(former)

    def lost(self, error: StoreError) -> bool:
        """Record that the store failed; returns whether an outage began with it."""
        if self._reads_answer and isinstance(error, CommitUnknown) and not error.answered:
            words = f"reads answer, COMMIT does not: has the cluster lost its majority? ({error})"
            error = CommitHangs(words, error.code, answered=True)
        began = self.error is None
        self.error = error
        now = time.monotonic()
        if began:
            self._flapping = self._restored_at is not None and now - self._restored_at < SETTLING_S
            if not self.logged:
                self._outage_since = now
            self.since = now
        obstacle = obstacle_of(error)
        if obstacle not in self._told and now >= self._grace_until:
            self.logged = True
            self._told.add(obstacle)
            code = error.code if isinstance(error, StoreAway) else 0
            self._log.warning("store.unavailable", error=str(error), code=code, server=self._server_text)
        return began

    def reads_answer(self) -> None:
        """The unavailable store answered the reads of a probe; what it says to a COMMIT comes next."""
        self._reads_answer = True

    def restored(self) -> bool:
        """Record that the store did real work again; returns whether an outage ended with it."""
        now = time.monotonic()
        self._grace_until = 0.0
        self._reads_answer = False
        ended = self.error is not None
        if ended:
            self.error = None
            self.since = self._restored_at = now
        if not self._flapping or now - self.since >= SETTLING_S:
            self._pause = FIRST_PROBE_S
            self._log_end()
        self._log_server()
        return ended

    @property
    def _server_text(self) -> str:
        """The server in use or the last one, before the first the address that is tried."""
        return self._store.server or self._store.shown

    def _log_end(self) -> None:
        if self.logged and self._restored_at is not None:
            outage_s = round(self._restored_at - self._outage_since, 1)
            self._log.info("store.available", outage_s=outage_s, server=self._server_text)
            self.logged = False
            self._told.clear()

    def _log_server(self) -> None:
        previous, self._server = self._server, self._store.server
        if previous and previous != self._server:
            self._log.warning("store.server_changed", previous=previous, server=self._server)

    def warn_of_plain_text(self, server: str) -> None:
        """Log that the connection is not encrypted, for the server cannot."""
        self._log.warning("store.unencrypted", server=server)

    def probe_delay(self) -> float:
        """Seconds before the next probe, spread so that nodes do not return all at once."""
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PROBE_S)
        return pause * random.uniform(0.5, 1.0)
