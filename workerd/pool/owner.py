"""What a worker's owner is told: the pool's work, or a test in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from workerd.messages import Loaded
from workerd.outcome import Ending
from workerd.pool.run import Run

if TYPE_CHECKING:
    from workerd.pool.member import Member


class Owner(Protocol):
    """Who is told what becomes of a worker; called from the loop."""

    def on_ready(self, member: Member, loaded: Loaded) -> None:
        """It may be given a job, or says why it cannot."""

    def on_ending(self, member: Member, run: Run, ending: Ending) -> None:
        """It finished a run."""

    def on_unread(self, run: Run) -> None:
        """This run was not begun, and its worker will not begin it."""

    def on_dead(self, member: Member, run: Run | None, status: int) -> None:
        """It is dead and reaped; `run` is what it was at and has not ended."""

    def on_lines(self, member: Member, run: Run | None, lines: list[str]) -> None:
        """It printed something, while at `run`."""

    def on_dropped(self, member: Member, run: Run | None, count: int) -> None:
        """So many bytes of what it printed were not told."""
