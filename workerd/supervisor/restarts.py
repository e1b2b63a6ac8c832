"""When a process that died is started again, and when a pool is held back: pure, over monotonic seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from workerd.config.model import Restart

QUICK = 2.0
"""Seconds; who dies sooner after its start died at once and waits before the next start."""
FIRST_PAUSE = 0.1
ROLE_PAUSE = 5.0
"""Seconds; the longest pause of a role, which is never given up."""
KILLED_IN_A_ROW = 2
"""Quick deaths in a row that count at the most for who worked and was killed by somebody else."""
QUARANTINE_PAUSE = 300.0
"""Seconds; the longest pause of a quarantined pool."""


@dataclass
class RestartPolicy:
    """The book of one process's deaths. `restart` is None for a role."""

    restart: Restart | None = None
    quarantined: bool = False
    _in_a_row: int = 0
    _deaths: deque[float] = field(default_factory=deque)

    def died(self, started: float, now: float, crash_loop: bool = False, blameless: bool = False) -> float:
        """Note a death and return the pause in seconds before the next start.

        `crash_loop`: the pool itself said that its workers die without a job as often as `restart` allows.
        `blameless`: it did its work until somebody killed it, so nothing says that the next one will die.
        """
        quick = now - started < QUICK or crash_loop
        self._in_a_row = self._in_a_row + 1 if quick else 0
        if blameless:
            self._in_a_row = min(self._in_a_row, KILLED_IN_A_ROW)
        if self.restart is not None:
            self._deaths.append(now)
            while self._deaths and now - self._deaths[0] > self.restart.period:
                self._deaths.popleft()
            if crash_loop or len(self._deaths) > self.restart.intensity:
                self.quarantined = True
        if not quick and not self.quarantined:
            return 0.0
        longest = QUARANTINE_PAUSE if self.quarantined else ROLE_PAUSE
        return float(min(longest, FIRST_PAUSE * 2 ** max(0, self._in_a_row - 1)))

    def proved_itself(self) -> None:
        """It has lived and worked long enough: the past is forgotten."""
        self.quarantined = False
        self._in_a_row = 0
        self._deaths.clear()
