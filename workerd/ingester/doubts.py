"""Outcomes that the store refused: whether it is their fault shows when others are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from workerd.outcome import Outcome

MAX_DOUBTS = 10
"""Outcomes refused one after the other before the store counts as the one that refuses."""


class Doubt(NamedTuple):
    """An outcome that was refused at this position of its batch, when so many others were recorded."""

    position: int
    outcome: Outcome
    error: str
    recorded: int
    send_again: bool


class Doubts:
    """The refused outcomes of a batch: whether it is their fault shows when others are recorded."""

    def __init__(self, recorded: Callable[[], int]) -> None:
        """`recorded`: how many outcomes took effect until now."""
        self.found: list[Doubt] = []
        self._recorded = recorded

    def add(self, position: int, outcome: Outcome, error: str, *, send_again: bool = True) -> None:
        """This outcome was refused, alone in its transaction."""
        self.found.append(Doubt(position, outcome, error, self._recorded(), send_again))

    @property
    def too_many(self) -> bool:
        """Whether many were refused and nothing was recorded: the store is at fault."""
        return len(self.found) >= MAX_DOUBTS and self._recorded() == self.found[0].recorded
