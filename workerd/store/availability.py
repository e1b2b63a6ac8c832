"""Whether the store answers a role: logged once per outage, with the pause before the next probe."""

from __future__ import annotations

import random
import time

from workerd.errors import StoreAway, StoreError
from workerd.log import get_logger

FIRST_PROBE_S, LONGEST_PROBE_S = 0.1, 0.5
"""Pause between two probes of an unavailable store: doubled from the first to the longest."""
STARTUP_GRACE_S = 1.0
"""An outage that begins with the role is not logged before: the store may be starting or migrated too."""


class StoreAvailability:
    """The availability of the store as one role sees it; a store never asked counts as available.

    error
        Why the store is unavailable, None while it is available.
    since
        Monotonic seconds at which it became what it is.
    logged
        Whether the present outage was logged.
    """

    def __init__(self, role: str) -> None:
        self.error: StoreError | None = None
        self.since = time.monotonic()
        self.logged = False
        self._grace_until = self.since + STARTUP_GRACE_S
        self._pause = FIRST_PROBE_S
        self._log = get_logger(role)

    @property
    def available(self) -> bool:
        return self.error is None

    def lost(self, error: StoreError) -> bool:
        """Record that the store failed; returns whether an outage began with it."""
        began = self.error is None
        self.error = error
        now = time.monotonic()
        if began:
            self.since = now
        if not self.logged and now >= self._grace_until:
            self.logged = True
            code = error.code if isinstance(error, StoreAway) else 0
            self._log.warning("store.unavailable", error=str(error), code=code)
        return began

    def restored(self) -> bool:
        """Record that the store did real work again; returns whether an outage ended with it."""
        self._pause = FIRST_PROBE_S
        self._grace_until = 0.0
        if self.error is None:
            return False
        now = time.monotonic()
        if self.logged:
            self.logged = False
            self._log.info("store.available", outage_s=round(now - self.since, 1))
        self.error = None
        self.since = now
        return True

    def warn_of_plain_text(self, server: str) -> None:
        """Log that the connection is not encrypted, for the server cannot."""
        self._log.warning("store.unencrypted", server=server)

    def probe_delay(self) -> float:
        """Seconds before the next probe, spread so that nodes do not return all at once."""
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PROBE_S)
        return pause * random.uniform(0.5, 1.0)
