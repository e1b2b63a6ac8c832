"""Writers of one unique key beside the jobs that run it: whether the newest data always ran.

Writes and runs are known by when they began and ended, on one clock: of two writes that overlap, either may
be the newer one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from workerd.client import Client
from workerd.errors import StoreAway


class Span(NamedTuple):
    """A write, or a run, of a value; monotonic nanoseconds."""

    began: int
    ended: int
    value: int


def write_in_turns(
    clients: Sequence[Client], handler: str, word: str, is_over: Callable[[int], bool], path: Path
) -> tuple[list[Span], int]:
    """One writer for each client, of the key "k"; the writes that were answered, and how many were not.

    `is_over`: whether a writer that has written so often stops. `path`: where the handler notes its runs.
    """
    written: list[Span] = []
    unanswered: list[int] = []
    options = {"delay": 0.05, "max_delay": 0.2} if word == "debounce" else {}

    def write(number: int, client: Client) -> None:
        count = 0
        while not is_over(count):
            value = count * len(clients) + number
            count += 1
            began = time.monotonic_ns()
            try:
                client.enqueue(
                    handler,
                    {"path": str(path), "value": value},
                    unique_key="k",
                    on_conflict=word,
                    **options,
                )
            except StoreAway:
                unanswered.append(value)
                continue
            written.append(Span(began, time.monotonic_ns(), value))

    threads = [threading.Thread(target=write, args=pair) for pair in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return written, len(unanswered)


def read_runs(path: Path) -> list[Span]:
    """The runs that `note_span` noted."""
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(Span(*map(int, line.split())) for line in lines)


def never_ran(writes: Sequence[Span], runs: Sequence[Span]) -> list[Span]:
    """Writes after which nothing began to run that was as new as they are."""
    answered = {write.value: write.ended for write in writes}
    newest: list[tuple[int, int]] = []  # of each run and those after it, the latest end of a write
    latest = 0
    for run in reversed(runs):
        latest = max(latest, answered.get(run.value, run.ended))
        newest.append((run.began, latest))
    newest.reverse()
    missed, at = [], 0
    for write in sorted(writes):
        while at < len(newest) and newest[at][0] < write.began:
            at += 1
        if at == len(newest) or newest[at][1] < write.began:
            missed.append(write)
    return missed


def went_back(writes: Sequence[Span], runs: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Pairs of runs of which the later has data that had been replaced when that of the earlier was given."""
    given = {write.value: write for write in writes}
    pairs = [(one, two) for one, two in pairwise(runs) if one.value in given and two.value in given]
    return [(one, two) for one, two in pairs if given[two.value].ended < given[one.value].began]


def overlapping(runs: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Runs that began while the one before was under way."""
    return [(one, two) for one, two in pairwise(runs) if two.began < one.ended]
