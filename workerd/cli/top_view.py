"""How `top` draws a frame, and what its keys change of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from workerd.cli.keyboard import Key
from workerd.cli.output import Document, is_terminal
from workerd.text import line, seconds_text, size_text

PLAIN_WIDTH = 120
WIDE = 100
"""From this width on, tables have columns that do not fit into 80."""
ID_WIDTH = 36
MAX_FILTER_CHARACTERS = 60
SORTS = ("name", "waiting", "busy", "cpu", "memory")
STYLES = {"up": "green", "quarantined": "red", "backoff": "yellow", "starting": "yellow"}


@dataclass
class ViewState:
    """What the keys have chosen; `typing`: they are letters of the filter."""

    sort: str = SORTS[0]
    filter: str = ""
    typing: bool = False
    scroll: int = 0
    page_lines: int = 10
    ended: bool = False

    def press(self, key: str) -> None:
        """Do what a key means."""
        if self.typing:
            self._type(key)
            return
        match key:
            case "q" | "Q" | Key.END_OF_INPUT:
                self.ended = True
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
            case "/":
                self.typing = True
            case Key.ESCAPE:
                self.filter = ""
            case _:
                self.scroll = max(0, self._scrolled(key))

    def _scrolled(self, key: str) -> int:
        """The first line of the body that is shown after a key."""
        lines = {
            Key.UP: -1, "k": -1, Key.DOWN: 1, "j": 1,
            Key.PAGE_UP: -self.page_lines, Key.PAGE_DOWN: self.page_lines, " ": self.page_lines,
            Key.HOME: -self.scroll,
        }  # fmt: skip
        return self.scroll + lines.get(key, 0)

    def _type(self, key: str) -> None:
        match key:
            case Key.ENTER:
                self.typing = False
            case Key.ESCAPE:
                self.typing, self.filter = False, ""
            case Key.BACKSPACE:
                self.filter = self.filter[:-1]
            case Key.END_OF_INPUT:
                self.ended = True
            case _ if len(key) == 1:
                self.filter = (self.filter + key)[:MAX_FILTER_CHARACTERS]
        self.scroll = 0

    def keys(self) -> str:
        """The line that tells the keys."""
        if self.typing:
            return f"filter: {self.filter}_  Enter apply  Esc clear"
        shown = f"/ filter: {self.filter} (Esc clears)" if self.filter else "/ filter"
        return f"q quit  ↑↓ scroll  s sort: {self.sort}  {shown}"


def print_frame(frame: Document) -> None:
    """Print one frame."""
    console = Console(highlight=False) if is_terminal() else Console(width=PLAIN_WIDTH, color_system=None)
    state = ViewState()
    console.print(Group(_head(frame), *_body(frame, state, console.width)))


@contextmanager
def live(state: ViewState) -> Iterator[Callable[[Document], None]]:
    """A function that draws a frame over the one before, on the whole screen if there is a terminal."""
    console = Console(highlight=False)
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as screen:
        yield lambda frame: screen.update(_screen(frame, state, console), refresh=True)


def _screen(frame: Document, state: ViewState, console: Console) -> Group:
    """The frame on the whole screen: a head, what fits of the body, and the line of keys."""
    head, footer = [console.render_lines(text, pad=False) for text in (_head(frame), _footer(state))]
    body = console.render_lines(Group(*_body(frame, state, console.width)), pad=False)
    room = max(1, console.height - len(head) - len(footer))
    state.page_lines = max(1, room - 1)
    state.scroll = min(state.scroll, max(0, len(body) - room))
    shown = body[state.scroll : state.scroll + room]
    shown += [[] for _ in range(room - len(shown))]
    lines = [*head, *shown, *footer]
    return Group(*(Segments([*parts, Segment.line()]) for parts in lines[:-1]), Segments(lines[-1]))


def _footer(state: ViewState) -> Text:
    return Text(state.keys(), style="reverse", no_wrap=True, overflow="ellipsis")


def _head(frame: Document) -> Group:
    return Group(_title(frame), _rates(frame))


def _body(frame: Document, state: ViewState, width: int) -> list[Any]:
    """Everything below the head."""
    # First: on a short screen, what is below can be scrolled to.
    parts: list[Any] = [
        Text(f"{line(part['name'])}: {line(part['trouble'])}", style="red")
        for part in [*frame["roles"], *frame["pools"]]
        if part["trouble"]
    ]
    pools = [pool for pool in frame["pools"] if _is_shown(state, pool["name"], *pool["handlers"])]
    parts += [Text(), _pools(sorted(pools, key=lambda pool: _order(pool, state.sort)), width)]
    running = [w for pool in pools for w in pool["workers"] if w["job"]]
    if running:
        parts += [Text(), _running(running, width)]
    depth = [row for row in frame["depth"] or () if _is_shown(state, row["handler"])]
    if frame["depth"] is None:
        parts += [Text(), Text("The store does not answer; its numbers are missing.", style="yellow")]
    elif depth:
        parts += [Text(), _depth(depth, by_name=state.sort == "name")]
    return parts


def _is_shown(state: ViewState, *names: str) -> bool:
    return any(state.filter.lower() in name.lower() for name in names)


def _order(pool: Document, sort: str) -> tuple[float, str]:
    processes = [pool, *pool["workers"]]
    value = {
        "name": 0.0,
        "waiting": pool["waiting"] or 0,
        "busy": sum(1 for worker in pool["workers"] if worker["job"]),
        "cpu": sum(part["cpu"] or 0 for part in processes),
        "memory": sum(part["memory"] or 0 for part in processes),
    }[sort]
    return -value, pool["name"]


def _title(frame: Document) -> Text:
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


def _table(name: str, *columns: str, left: tuple[str, ...] = ()) -> Table:
    """A table whose first column, a name, is folded where it does not fit; no other one is."""
    table = Table(box=None, pad_edge=False, header_style="bold reverse", padding=(0, 1, 0, 0))
    table.add_column(name, overflow="fold", min_width=8)
    for column in columns:
        is_left = column in left
        table.add_column(
            column,
            justify="left" if is_left else "right",
            no_wrap=column not in ("HANDLERS", "HANDLER", "NOTE"),
            overflow="fold",
            min_width=ID_WIDTH if column == "JOB" else None,
        )
    return table


def _pools(pools: list[Document], width: int) -> Table:
    wide = ("HANDLERS",) if width >= WIDE else ()
    table = _table(
        "POOL", "STATE", "BUSY", "WAITING", "RESTARTS", "CPU", "MEMORY", *wide, left=("STATE", "HANDLERS")
    )
    for pool in pools:
        workers = pool["workers"]
        busy = sum(1 for w in workers if w["job"])
        state = "quarantined" if pool["quarantined"] else str(pool["state"])
        table.add_row(
            Text(line(pool["name"])),
            Text(state, style=STYLES.get(state, "")),
            f"{busy}/{len(workers)}",
            count_text(pool["waiting"], is_more=pool["waiting_is_more"]),
            str(pool["restarts"] or 0),
            _percent([pool, *workers]),
            _memory([pool, *workers]),
            *([Text(", ".join(map(line, pool["handlers"])))] if wide else []),
        )
    return table


def count_text(count: int | None, *, is_more: bool = False) -> str:
    """A number of jobs, `100,000+` if there are more, `-` if it is not known."""
    return "-" if count is None else f"{count:,}{'+' if is_more else ''}"


def _percent(processes: list[Document]) -> str:
    return f"{sum(p['cpu'] or 0 for p in processes):.0f} %"


def _memory(processes: list[Document]) -> str:
    return size_text(sum(p["memory"] or 0 for p in processes))


def _running(running: list[Document], width: int) -> Table:
    wide = ("PID", "HANDLER", "NOTE") if width >= WIDE else ()
    table = _table("WORKER", "FOR", "CPU", "MEMORY", "JOB", *wide, left=("JOB", "HANDLER", "NOTE"))
    for worker in sorted(running, key=lambda one: -(one["seconds"] or 0)):
        extra = [Text(str(worker["pid"])), Text(line(worker["handler"])), Text(line(worker["note"] or ""))]
        table.add_row(
            Text(line(worker["name"])),
            seconds_text(worker["seconds"]) or "-",
            _percent([worker]),
            _memory([worker]),
            Text(str(worker["job"])),
            *(extra if wide else []),
        )
    return table


def _depth(depth: list[Document], *, by_name: bool) -> Table:
    table = _table("HANDLER", "NEW", "SCHEDULED", "IN PROGRESS", "OLDEST")
    for row in depth if by_name else sorted(depth, key=lambda r: -r["new"]):
        table.add_row(
            Text(line(row["handler"])),
            *(
                count_text(row[state], is_more=row[state] >= row["cap"])
                for state in ("new", "scheduled", "inprogress")
            ),
            seconds_text(row.get("oldest_seconds")) or "-",
        )
    return table
