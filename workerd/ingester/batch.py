"""How much goes into one transaction, and what an outcome weighs in it."""

from __future__ import annotations

from workerd.outcome import Outcome

ROW = 400
"""Bytes of SQL that an outcome without payload and text needs, in all statements of its closing."""
USUAL_PACKET = 16 * 1024 * 1024
"""`max_allowed_packet` as servers come, for as long as ours has not said it."""


def weight(outcome: Outcome) -> int:
    """Bytes of SQL that this outcome needs at most: an escape may double every byte."""
    total = ROW
    if outcome.payload is not None:
        total += 2 * len(outcome.payload)
    if outcome.extras is not None:
        total += 2 * len(outcome.extras)
    if outcome.spawn is not None:
        total += 2 * len(outcome.spawn)
    if outcome.error is not None:
        total += _text(outcome.error)
    if outcome.stack is not None:
        total += _text(outcome.stack)
    if outcome.note is not None:
        total += _text(outcome.note)
    return total


def _text(text: str) -> int:
    return len(text) * (2 if text.isascii() else 4)


class Measure:
    """One batch being filled: at most `rows` outcomes, `weight` bytes, and one outcome of a job.

    The same job twice (sent again after a reconnect, or lost and then found) is decided by order, and
    within one statement there is none.
    """

    def __init__(self, rows: int, weight: int) -> None:
        self._rows = rows
        self._weight = weight
        self._jobs: set[bytes] = set()

    def takes(self, outcome: Outcome, weight: int) -> bool:
        """Count it in; false if the batch must go without it. The first is always taken."""
        jobs = self._jobs
        if jobs and (len(jobs) >= self._rows or self._weight < weight or outcome.id in jobs):
            return False
        jobs.add(outcome.id)
        self._weight -= weight
        return True
