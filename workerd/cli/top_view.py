"""How `top` draws a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from workerd.cli.output import Document, is_terminal
from workerd.text import line, seconds_text, size_text

PLAIN_WIDTH = 120
WIDE = 100
"""From this width on, tables have columns that do not fit into 80."""


def print_frame(frame: Document) -> None:
    """Print one frame."""
    console = Console(highlight=False) if is_terminal() else Console(width=PLAIN_WIDTH, color_system=None)
    console.print(render(frame, console.width))


@contextmanager
def live() -> Iterator[Callable[[Document], None]]:
    """A function that draws a frame over the one before, on the whole screen if there is a terminal."""
    console = Console(highlight=False)
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as screen:
        yield lambda frame: screen.update(render(frame, console.width), refresh=True)


def render(frame: Document, width: int) -> Group:
    """The frame drawn in `width` columns."""
    parts: list[Any] = [_head(frame), _rates(frame), Text()]
    parts.append(_pools(frame, width))
    running = [(pool, w) for pool in frame["pools"] for w in pool["workers"] if w["job"]]
    if running:
        parts += [Text(), _running(running, width)]
    if frame["depth"]:
        parts += [Text(), _depth(frame["depth"])]
    troubles = [p for p in [*frame["roles"], *frame["pools"]] if p["trouble"]]
    if troubles:
        parts.append(Text())
        parts += [Text(f"{p['name']}: {line(p['trouble'])}", style="red") for p in troubles]
    return Group(*parts)


def _head(frame: Document) -> Text:
    store = frame["store"] or {}
    words = [f"workerd {frame['version']} on {line(frame['node'])}", str(frame["state"])]
    words.append(f"store {store.get('state', 'unknown')}")
    if frame["lease_left"] is not None:
        words.append(f"lease {frame['lease_left']:.0f} s")
    spool = (frame["spool"] or {}).get("bytes")
    if spool:
        words.append(f"spool {size_text(spool)}")
    return Text(" · ".join(words), style="bold")


def _rates(frame: Document) -> Text:
    words = [
        f"{rate:,.0f} {what}/s"
        for rate, what in ((frame["claims_per_second"], "claimed"), (frame["ends_per_second"], "ended"))
        if isinstance(rate, int | float)
    ]
    processes = [*frame["roles"], *frame["pools"], *(w for p in frame["pools"] for w in p["workers"])]
    words += [f"{len(processes)} processes", f"CPU {_percent(processes)}", _memory(processes)]
    return Text(" · ".join(words))


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold reverse", padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


STYLES = {"up": "green", "quarantined": "red", "backoff": "yellow", "starting": "yellow"}


def _pools(frame: Document, width: int) -> Table:
    wide = ("HANDLERS",) if width >= WIDE else ()
    table = _table(
        "POOL", "STATE", "BUSY", "WAITING", "RESTARTS", "CPU", "MEMORY", *wide,
        right=("BUSY", "WAITING", "RESTARTS", "CPU", "MEMORY"),
    )  # fmt: skip
    for pool in frame["pools"]:
        workers = pool["workers"]
        busy = sum(1 for w in workers if w["job"])
        state = "quarantined" if pool["quarantined"] else str(pool["state"])
        table.add_row(
            Text(line(pool["name"])[:24]),
            Text(state, style=STYLES.get(state, "")),
            f"{busy}/{len(workers)}",
            str(pool["waiting"] or 0),
            str(pool["restarts"] or 0),
            _percent([pool, *workers]),
            _memory([pool, *workers]),
            *([Text(", ".join(map(line, pool["handlers"])))] if wide else []),
        )
    return table


def _percent(processes: list[Document]) -> str:
    return f"{sum(p['cpu'] or 0 for p in processes):.0f} %"


def _memory(processes: list[Document]) -> str:
    return size_text(sum(p["memory"] or 0 for p in processes))


def _running(running: list[tuple[Document, Document]], width: int) -> Table:
    wide = ("PID", "HANDLER", "NOTE") if width >= WIDE else ()
    table = _table("WORKER", "FOR", "CPU", "MEMORY", "JOB", *wide, right=("FOR", "CPU", "MEMORY"))
    for _, worker in sorted(running, key=lambda r: -(r[1]["seconds"] or 0)):
        extra = [Text(str(worker["pid"])), Text(line(worker["handler"])), Text(line(worker["note"] or ""))]
        table.add_row(
            Text(line(worker["name"])[:16]),
            seconds_text(worker["seconds"]) or "-",
            _percent([worker]),
            _memory([worker]),
            Text(str(worker["job"])),
            *(extra if wide else []),
        )
    return table


def _depth(depth: list[Document]) -> Table:
    table = _table(
        "HANDLER",
        "NEW",
        "SCHEDULED",
        "IN PROGRESS",
        "OLDEST",
        right=("NEW", "SCHEDULED", "IN PROGRESS", "OLDEST"),
    )
    for row in sorted(depth, key=lambda r: -r["new"]):
        table.add_row(
            Text(line(row["handler"])[:32]),
            *(f"{row[state]:,}" for state in ("new", "scheduled", "inprogress")),
            seconds_text(row.get("oldest_seconds")) or "-",
        )
    return table
