"""What became of the demo's jobs: live progress, the table of outcomes, the verdict."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from workerd.demo.handlers import Task
from workerd.job import ENDED, Status
from workerd.store.base import Store, Tx
from workerd.store.columns import identifier, lenient, text
from workerd.text import line, seconds_text


@dataclass
class DemoProgress:
    """Jobs of one handler by state, counting each job once."""

    total: int
    ended: int = 0
    running: int = 0
    retried: int = 0


def progress(store: Store, totals: dict[str, int]) -> dict[str, DemoProgress]:
    """How far the jobs are, by handler."""
    found = {handler: DemoProgress(total) for handler, total in totals.items()}
    rows = store.read(
        lambda tx: tx.query("SELECT handler, status, COUNT(*) FROM workerd_jobs GROUP BY handler, status")
    )
    for handler, status, count in rows:
        of = found.setdefault(text(handler), DemoProgress(0))
        match Status(text(status)):
            case Status.COMPLETED | Status.FAILURE | Status.CANCELLED:
                of.ended += count
            case Status.INPROGRESS:
                of.running += count
            case Status.RETRY:
                of.retried += count
    return found


def running(store: Store, handler: str) -> list[bytes]:
    """Ids of the handler's jobs that run now."""
    rows = store.read(
        lambda tx: tx.query(
            "SELECT id FROM workerd_jobs WHERE handler = %s AND status = 'inprogress'",
            (handler,),
        )
    )
    return [identifier(job_id) for (job_id,) in rows]


@dataclass(frozen=True)
class DemoOutcome:
    """One job that has ended: how, after how many attempts, and how long each of them ran."""

    id: bytes
    handler: str
    status: str
    reason: str
    error: str
    vars: str
    payload: str
    attempts: int
    run_us: tuple[int, ...]


@dataclass
class Group:
    """Jobs of one handler that ended in the same way."""

    handler: str
    status: str
    reason: str
    jobs: list[DemoOutcome] = field(default_factory=list)

    @property
    def attempts(self) -> int:
        return sum(job.attempts for job in self.jobs)

    def percentile(self, share: float) -> float | None:
        """Seconds within which this share of the attempts ran."""
        times = sorted(us for job in self.jobs for us in job.run_us)
        return times[max(0, math.ceil(share * len(times)) - 1)] / 1e6 if times else None

    @property
    def slowest(self) -> DemoOutcome | None:
        """The job with the longest attempt."""
        return max((job for job in self.jobs if job.run_us), key=lambda job: max(job.run_us), default=None)


class Results:
    """All that ended, against all that was enqueued."""

    def __init__(self, ended: Sequence[DemoOutcome], expected: set[bytes], unclosed: int) -> None:
        self.ended = ended
        self.unclosed = unclosed
        counts = Counter(job.id for job in ended)
        self.missing = expected - counts.keys()
        self.strange = counts.keys() - expected
        self.twice = {job_id for job_id, count in counts.items() if count > 1}

    @property
    def complete(self) -> bool:
        """Whether every job that was enqueued has exactly one end, and nothing else is there."""
        return not (self.missing or self.strange or self.twice or self.unclosed)

    def groups(self, order: Sequence[str]) -> list[Group]:
        """Jobs by handler, in this order, and by the way they ended, the most frequent first."""
        groups: dict[tuple[str, str, str], Group] = {}
        for job in self.ended:
            key = (job.handler, job.status, job.reason)
            groups.setdefault(key, Group(*key)).jobs.append(job)
        places = {handler: place for place, handler in enumerate(order)}

        def place(group: Group) -> tuple[int, int, str]:
            return places.get(group.handler, len(places)), -len(group.jobs), group.reason

        return sorted(groups.values(), key=place)


def results(store: Store, expected: set[bytes]) -> Results:
    """How every job ended, read from the store."""
    return store.read(lambda tx: _results(tx, expected))


def _results(tx: Tx, expected: set[bytes]) -> Results:
    times: dict[bytes, list[int]] = defaultdict(list)
    attempts: Counter[bytes] = Counter()
    unclosed = 0
    for job_id, status, run_us in tx.query("SELECT id, status, run_us FROM workerd_jobs"):
        attempts[job_id] += 1
        if run_us is not None:
            times[job_id].append(run_us)
        if Status(text(status)) not in (*ENDED, Status.RETRY):
            unclosed += 1
    rows = tx.query(
        "SELECT id, handler, status, reason, error, vars, payload FROM workerd_jobs"
        " WHERE status IN ('completed', 'failure', 'cancelled')"
    )
    ended = [
        DemoOutcome(
            id=identifier(row[0]),
            handler=text(row[1]),
            status=text(row[2]),
            reason=lenient(row[3]) or "",
            error=lenient(row[4]) or "",
            vars=lenient(row[5]) or "",
            payload=lenient(row[6]) or "",
            attempts=attempts[row[0]],
            run_us=tuple(times[row[0]]),
        )
        for row in rows
    ]
    return Results(ended, expected, unclosed)


def counted(group: Group) -> Counter[str]:
    """The sums of the counts that the jobs of a group returned."""
    sums: Counter[str] = Counter()
    for job in group.jobs:
        try:
            sums.update(msgspec.json.decode(job.payload, type=dict[str, int]))
        except msgspec.MsgspecError:
            continue
    return sums


PLAIN_EVERY = 2.0
"""Seconds between two lines of progress where there is no terminal."""
NAME_SHOWN = 48
NARROW = 80
"""Columns that the table needs; what a terminal has beyond them is for errors."""
WIDE = 110
"""Columns from which on there is room for explanations."""


class Show(Protocol):
    """Shows progress until it is closed."""

    def update(self, progress: dict[str, DemoProgress]) -> None: ...

    def close(self) -> None: ...


class LiveShow:
    """A table of bars that redraws itself."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._wide = console.width >= WIDE
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self, progress: dict[str, DemoProgress]) -> None:
        """Draw the bars as they are now."""
        table = Table.grid(padding=(0, 1))
        for task in self._tasks:
            of = progress[task.handler]
            table.add_row(
                Text(task.handler, style="bold"),
                ProgressBar(total=max(1, of.total), completed=of.ended, width=24),
                Text(f"{of.ended}/{of.total}"),
                Text(f"{of.running} running" if of.running else "", style="cyan"),
                Text(f"{of.retried} retried" if of.retried else "", style="yellow"),
                Text(task.note if self._wide else "", style="dim"),
            )
        self._live.update(table, refresh=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


class PlainShow:
    """A line now and then, on standard error."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def update(self, progress: dict[str, DemoProgress]) -> None:
        """Say how far it is, if the last line was some time ago."""
        if time.monotonic() - self._told < PLAIN_EVERY:
            return
        self._told = time.monotonic()
        ended = sum(of.ended for of in progress.values())
        total = sum(of.total for of in progress.values())
        running = sum(of.running for of in progress.values())
        print(f"{ended:,} of {total:,} jobs have ended, {running} run.", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


def show_for(console: Console, tasks: Sequence[Task]) -> Show:
    """Live where somebody looks, else plain."""
    return LiveShow(console, tasks) if console.is_terminal else PlainShow()


def table(console: Console, tasks: Sequence[Task], results: Results) -> None:
    """Print the outcomes by handler: counts, run times, the slowest job."""
    wide = console.width >= WIDE
    rows = Table(
        title="Outcomes by handler", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    rows.add_column("handler", style="bold", no_wrap=True)
    rows.add_column("ended as", no_wrap=True)
    for name in ("jobs", "attempts", "p50", "p95", "slowest"):
        rows.add_column(name, justify="right", no_wrap=True)
    if wide:
        room = console.width - NARROW
        rows.add_column(
            "error of one of them", style="dim", overflow="ellipsis", no_wrap=True, max_width=room
        )
    for group in results.groups([task.handler for task in tasks]):
        rows.add_row(*_cells(group), *([Text(line(group.jobs[-1].error))] if wide else []))
    console.print(rows)


STYLES = {"completed": "green", "failure": "red", "cancelled": "yellow"}


def _cells(group: Group) -> list[Text]:
    slowest = group.slowest
    return [
        Text(group.handler),
        Text(f"{group.status}, {group.reason}", style=STYLES.get(group.status, "")),
        Text(f"{len(group.jobs):,}"),
        Text(f"{group.attempts:,}"),
        Text(seconds_text(group.percentile(0.5)) or "-"),
        Text(seconds_text(group.percentile(0.95)) or "-"),
        Text(seconds_text(max(slowest.run_us) / 1e6) or "-" if slowest else "-"),
    ]


def summary(console: Console, results: Results, elapsed: float) -> None:
    """Print what the main handler found, and its slowest job."""
    parsed = next(
        (g for g in results.groups([]) if g.handler == "parse_source" and g.status == "completed"), None
    )
    if parsed is not None:
        sums = counted(parsed)
        _say(
            console,
            f"parse_source read {sums['lines']:,} lines in {len(parsed.jobs):,} files and found "
            f"{sums['functions']:,} functions, {sums['classes']:,} classes, {sums['imports']:,} imports.",
        )
        if parsed.slowest is not None:
            _say(console, f"Its slowest job: {_file(parsed.slowest)}, {_longest(parsed.slowest)}.")
    _say(console, f"{len(results.ended):,} jobs ended in {seconds_text(elapsed)}.")


def _file(job: DemoOutcome) -> str:
    try:
        path = msgspec.json.decode(job.vars, type=dict[str, Any]).get("file", "")
    except msgspec.MsgspecError:
        return "?"
    return str(Path(*Path(str(path)).parts[-2:]))[-NAME_SHOWN:]


def _longest(job: DemoOutcome) -> str:
    return seconds_text(max(job.run_us) / 1e6) or "?"


def _say(console: Console, text: str) -> None:
    console.print(Text(line(text)), soft_wrap=True)


def verdict(console: Console, results: Results, expected: int) -> None:
    """Print whether every job has its end."""
    if results.complete:
        _say(console, f"Checked in the store: each of the {expected:,} jobs has exactly one end.")
        return
    faults = [
        f"{len(found):,} {words}"
        for found, words in (
            (results.missing, "without an end"),
            (results.twice, "with two ends"),
            (results.strange, "that nobody enqueued"),
        )
        if found
    ]
    if results.unclosed:
        faults.append(f"{results.unclosed:,} attempts still open")
    _say(
        console,
        f"Checked in the store: of {expected:,} jobs there are {', '.join(faults)}.",
    )
