"""How the demo looks: live progress on a terminal, plain lines elsewhere, and the table of outcomes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from workerd.demo.material import Task
from workerd.demo.results import Ended, Group, Progress, Results, counted
from workerd.wording import line, seconds_text

PLAIN_EVERY = 2.0
"""Seconds between two lines of progress where there is no terminal."""
NAME_SHOWN = 48
NARROW = 80
"""Columns that the table needs; what a terminal has beyond them is for errors."""
WIDE = 110
"""Columns from which on there is room for explanations."""


class Show(Protocol):
    """Shows progress until it is closed."""

    def update(self, progress: dict[str, Progress]) -> None: ...

    def close(self) -> None: ...


class LiveShow:
    """A table of bars that redraws itself."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._wide = console.width >= WIDE
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self, progress: dict[str, Progress]) -> None:
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

    def update(self, progress: dict[str, Progress]) -> None:
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


def _file(job: Ended) -> str:
    try:
        path = msgspec.json.decode(job.vars, type=dict[str, Any]).get("file", "")
    except msgspec.MsgspecError:
        return "?"
    return str(Path(*Path(str(path)).parts[-2:]))[-NAME_SHOWN:]


def _longest(job: Ended) -> str:
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
        f"Checked in the store: of {expected:,} jobs there are {', '.join(faults)}. "
        f"This is a fault of workerd: please report it with this output.",
    )
