"""What the demo shows: live progress, the table of outcomes, and whether every job has ended once."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from workerd.clock import SECOND
from workerd.demo.handlers import DemoTask
from workerd.document_types import Job
from workerd.job import ENDED, Status
from workerd.outcome import Reason
from workerd.text import line, plural, seconds_text

LINE_INTERVAL_S = 2.0
"""Between two lines of progress where there is no terminal."""
MAX_PATH_CHARACTERS = 48
TABLE_WIDTH = 80
"""Columns of the table without errors."""
WIDE = 110
"""From this width on there is room for explanations and errors."""
PIPE_WIDTH = 150
STYLES = {"completed": "green", "failure": "red", "cancelled": "yellow"}


@dataclass(frozen=True)
class DemoProgress:
    """Jobs of one handler: all that were enqueued, and the number of attempts by status."""

    total: int
    counts: Mapping[str, int]

    @property
    def ended(self) -> int:
        return sum(self.counts.get(status, 0) for status in ENDED)

    @property
    def running(self) -> int:
        return self.counts.get(Status.INPROGRESS, 0)

    @property
    def retried(self) -> int:
        return self.counts.get(Status.RETRY, 0)


@dataclass
class OutcomeGroup:
    """Jobs of one handler that ended in the same way."""

    handler: str
    status: str
    reason: str
    jobs: list[Job] = field(default_factory=list)

    @property
    def attempts(self) -> int:
        """Attempts of all its jobs."""
        return sum(len(job.attempts) for job in self.jobs)

    def percentile(self, share: float) -> float | None:
        """Seconds within which this share of the attempts ran; None if none has run."""
        times = sorted(us for job in self.jobs for us in _run_times(job))
        return times[max(0, math.ceil(share * len(times)) - 1)] / SECOND if times else None

    @property
    def slowest(self) -> Job | None:
        """The job with the longest attempt."""
        return max(filter(_run_times, self.jobs), key=lambda job: max(_run_times(job)), default=None)


def _run_times(job: Job) -> list[int]:
    return [attempt.run_us for attempt in job.attempts if attempt.run_us is not None]


class DemoResults:
    """The jobs found in the store, compared with the ids of those that were enqueued."""

    def __init__(self, found: Sequence[Job], expected: set[str]) -> None:
        self.ended = [job for job in found if job.complete]
        ends = Counter(job.id for job in self.ended)
        self.missing = expected - ends.keys()
        self.unexpected = {job.id for job in found} - expected
        self.duplicated = {job_id for job_id, count in ends.items() if count > 1}
        self.open_attempts = sum(
            attempt.status not in (*ENDED, Status.RETRY) for job in found for attempt in job.attempts
        )

    @property
    def complete(self) -> bool:
        """Whether every job that was enqueued has ended exactly once, and there is no other."""
        return not (self.missing or self.unexpected or self.duplicated or self.open_attempts)

    def reasons(self) -> dict[str, Counter[str]]:
        """The number of attempts that ended for each reason, by handler."""
        found: dict[str, Counter[str]] = {}
        for job in self.ended:
            for attempt in job.attempts:
                found.setdefault(attempt.reason or "", Counter())[job.handler] += 1
        return found

    def groups(self, order: Sequence[str]) -> list[OutcomeGroup]:
        """Jobs by handler, in this order, and by outcome, the most frequent first."""
        groups: dict[tuple[str, str, str], OutcomeGroup] = {}
        for job in self.ended:
            key = (job.handler, job.status, job.reason or "")
            groups.setdefault(key, OutcomeGroup(*key)).jobs.append(job)
        return sorted(
            groups.values(), key=lambda group: (order.index(group.handler), -len(group.jobs), group.reason)
        )


@contextmanager
def progress_display(tasks: Sequence[DemoTask]) -> Iterator[Callable[[Mapping[str, DemoProgress]], None]]:
    """A function that shows progress by handler: as live bars on a terminal, else as a line now and then."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        yield _line_printer()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda progress: live.update(_bars(tasks, progress, console.width >= WIDE), refresh=True)


def _bars(tasks: Sequence[DemoTask], progress: Mapping[str, DemoProgress], wide: bool) -> Table:
    table = Table.grid(padding=(0, 1))
    for task in tasks:
        of = progress[task.handler]
        table.add_row(
            Text(task.handler, style="bold"),
            ProgressBar(total=max(1, of.total), completed=of.ended, width=24),
            Text(f"{of.ended}/{of.total}"),
            Text(f"{of.running} running" if of.running else "", style="cyan"),
            Text(f"{of.retried} retried" if of.retried else "", style="yellow"),
            Text(task.note if wide else "", style="dim"),
        )
    return table


def _line_printer() -> Callable[[Mapping[str, DemoProgress]], None]:
    last = time.monotonic()

    def show(progress: Mapping[str, DemoProgress]) -> None:
        nonlocal last
        if time.monotonic() - last < LINE_INTERVAL_S:
            return
        last = time.monotonic()
        ended, total, running = (
            sum(getattr(of, name) for of in progress.values()) for name in ("ended", "total", "running")
        )
        print(f"{ended:,} of {total:,} jobs have ended, {running} are running.", file=sys.stderr, flush=True)

    return show


def print_report(tasks: Sequence[DemoTask], results: DemoResults, elapsed_s: float) -> None:
    """Print the table of outcomes, what the main handler found, and whether every job has ended once."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH, highlight=False, emoji=False, color_system=None)
    groups = results.groups([task.handler for task in tasks])
    console.print(_outcome_table(groups, console.width))
    console.print()
    if console.width < WIDE:
        console.print(_error_table(groups))
        console.print()
    console.print(_reason_table(results.reasons()))
    console.print()
    sentences = [*_parsed(groups), f"{len(results.ended):,} jobs ended in {seconds_text(elapsed_s)}."]
    for sentence in [*sentences, conclusion(results)]:
        console.print(Text(line(sentence)), soft_wrap=True)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))


def _outcome_table(groups: Sequence[OutcomeGroup], width: int) -> Table:
    table = _table("Outcomes by handler")
    table.add_column("handler", style="bold", no_wrap=True)
    table.add_column("ended as", no_wrap=True)
    for name in ("jobs", "attempts", "p50", "p95", "slowest"):
        table.add_column(name, justify="right", no_wrap=True)
    wide = width >= WIDE
    if wide:
        table.add_column("one of the errors", style="dim", overflow="fold", max_width=width - TABLE_WIDTH)
    for group in groups:
        cells = [
            Text(group.handler),
            Text(f"{group.status}, {group.reason}", style=STYLES.get(group.status, "")),
            Text(f"{len(group.jobs):,}"),
            Text(f"{group.attempts:,}"),
            *(Text(seconds_text(group.percentile(share)) or "-") for share in (0.5, 0.95, 1)),
        ]
        table.add_row(*cells, *([Text(line(group.jobs[-1].error or ""))] if wide else []))
    return table


def _error_table(groups: Sequence[OutcomeGroup]) -> Table:
    """The errors, where the other table has no room for them."""
    table = _table("One of the errors")
    table.add_column("handler", style="bold", no_wrap=True)
    table.add_column("error", style="dim", overflow="fold")
    for group in groups:
        error = group.jobs[-1].error
        if error:
            table.add_row(Text(group.handler), Text(line(error)))
    return table


def _reason_table(reasons: Mapping[str, Counter[str]]) -> Table:
    """How attempts ended, which shows the reasons of those that were repeated too."""
    table = _table("Attempts by reason")
    table.add_column("reason", style="bold", no_wrap=True)
    table.add_column("attempts", justify="right", no_wrap=True)
    table.add_column("handlers", overflow="fold")
    for reason in Reason:
        handlers = reasons.get(reason, Counter())
        table.add_row(Text(reason), Text(f"{handlers.total():,}"), Text(", ".join(sorted(handlers)) or "-"))
    return table


def _parsed(groups: Sequence[OutcomeGroup]) -> Iterator[str]:
    """What the parsed files contain, and which of them took longest."""
    for group in groups:
        if (group.handler, group.status) != ("parse_source", "completed"):
            continue
        sums: Counter[str] = Counter()
        for job in group.jobs:
            sums.update(job.payload)
        yield (
            f"parse_source read {sums['lines']:,} lines in {len(group.jobs):,} files and found "
            f"{sums['functions']:,} functions, {sums['classes']:,} classes, {sums['imports']:,} imports."
        )
        if group.slowest is not None:
            path = Path(*Path(group.slowest.vars["file"]).parts[-2:])
            yield f"Its slowest job: {str(path)[-MAX_PATH_CHARACTERS:]}, {seconds_text(group.percentile(1))}."


def conclusion(results: DemoResults) -> str:
    """Whether every job has ended exactly once, in one sentence."""
    if results.complete:
        return f"Checked in the store: each of the {len(results.ended):,} jobs has exactly one end."
    found = {
        f"{plural(len(results.missing), 'job')} without an end": results.missing,
        f"{plural(len(results.duplicated), 'job')} with two ends": results.duplicated,
        f"{plural(len(results.unexpected), 'job')} that the demo did not enqueue": results.unexpected,
        plural(results.open_attempts, "open attempt"): results.open_attempts,
    }
    return f"Checked in the store: {', '.join(text for text, problem in found.items() if problem)}."
