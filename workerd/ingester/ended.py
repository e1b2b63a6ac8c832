"""The attempts that this process has written the end of: what a store may have lost that was away."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from workerd.job import AttemptRef, Status
from workerd.outcome import Outcome

MAX_ATTEMPTS = 50_000
"""The newest are kept, 24 bytes each: a failover loses the commits of its last moments."""
ID_BYTES = 16


class _Batch(NamedTuple):
    ids: bytes
    attempts: array[int]
    written_ns: int


class EndedAttempts:
    """Attempts by the batches that they were written in.

    `since_ns`: monotonic nanoseconds; every attempt that was written since then is here.
    """

    def __init__(self) -> None:
        self.since_ns = time.monotonic_ns()
        self._batches: deque[_Batch] = deque()
        self._count = 0

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """These were written, whether or not that took effect; those released do not count."""
        ended = [o for o in outcomes if o.status is not Status.NEW]
        if not ended:
            return
        ids = b"".join([o.id for o in ended])
        self._batches.append(_Batch(ids, array("Q", [o.attempt for o in ended]), time.monotonic_ns()))
        self._count += len(ended)
        while self._count > MAX_ATTEMPTS:
            oldest = self._batches.popleft()
            self._count -= len(oldest.attempts)
            self.since_ns = oldest.written_ns

    def refs(self) -> list[AttemptRef]:
        """All of them, the oldest first."""
        return [
            AttemptRef(batch.ids[n * ID_BYTES : (n + 1) * ID_BYTES], attempt)
            for batch in self._batches
            for n, attempt in enumerate(batch.attempts)
        ]
