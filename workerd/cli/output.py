"""Output of commands: data on standard output, messages for people on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from workerd import lean_imports
from workerd.text import harmless, line

Document = dict[str, Any]
"""A JSON object, such as those of `workerd.documents`."""

# For tables; the daemon is started by way of this module, and prints none.
shutil = lean_imports.deferred("shutil")
unicodedata = lean_imports.deferred("unicodedata")

MIN_LAST_COLUMN_WIDTH = 20
CONTINUED = "    "
"""In front of the further lines of a row."""


def notify(message: str) -> None:
    """Print a message for a person on standard error."""
    with contextlib.suppress(OSError):  # a full disk: what was done is done all the same
        print(harmless(message), file=sys.stderr, flush=True)


def confirm(question: str) -> bool:
    """Ask a person on the terminal; anything but yes is no."""
    print(f"{harmless(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class ProgressLine:
    """One line on the terminal of standard error that is written over, and gone at the end."""

    def __enter__(self) -> ProgressLine:
        self._shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._width = 0
        return self

    def __exit__(self, *exc: object) -> None:
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        """Replace what is shown."""
        if self._shown:
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = max(self._width, len(text))


def print_text(text: str = "") -> None:
    """Print data on standard output, control characters escaped."""
    print(harmless(text))


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    print(text.replace("\x7f", "\\u007f"))


def print_heading(text: str) -> None:
    """Print a heading after an empty line, bold on a terminal."""
    print(f"\n{bold(text)}")


def is_terminal() -> bool:
    """Whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def bold(text: str) -> str:
    """The text in bold where standard output may be coloured."""
    return f"\x1b[1m{text}\x1b[0m" if is_terminal() and not os.environ.get("NO_COLOR") else text


# Not Rich's tables: they take 70 ms to import, which is a third of such a command, and cut or wrap ids and
# errors at 80 columns when the output is piped into another program.
def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns, a line for each row; nothing is cut.

    On a terminal that is too narrow each row takes several lines: columns that do not fit go on below, and
    the text of the last one is wrapped.
    """
    texts = [["-" if cell in (None, "") else line(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(headers, *texts, strict=True)]
    room = shutil.get_terminal_size().columns if is_terminal() else None
    groups = _fold(widths, room)
    for text in _row_lines([header.upper() for header in headers], widths, groups, None):
        print(bold(text))
    for row in texts:
        for text in _row_lines(row, widths, groups, room):
            print(text)


def _fold(widths: Sequence[int], room: int | None) -> list[range]:
    """The columns that each line of a row has."""
    groups: list[range] = []
    first, used = 0, 0
    for column, width in enumerate(widths):
        is_last = column == len(widths) - 1
        needed = min(width, MIN_LAST_COLUMN_WIDTH) if is_last else width
        if column > first and room is not None and used + needed > room:
            groups.append(range(first, column))
            first, used = column, len(CONTINUED)
        used += width + 2
    return [*groups, range(first, len(widths))]


def _row_lines(
    cells: Sequence[str], widths: Sequence[int], groups: Sequence[range], room: int | None
) -> Iterable[str]:
    """The lines of one row; the text of its last column is wrapped to `room` columns."""
    for group in groups:
        start = CONTINUED if group.start else ""
        head = start + "".join(_padded(cells[column], widths[column]) + "  " for column in group[:-1])
        last = cells[group[-1]]
        if room is None or group[-1] < len(widths) - 1 or _width(head) + _width(last) <= room:
            yield (head + last if last else head).rstrip()
            continue
        margin = " " * _width(head)
        if room - len(margin) < MIN_LAST_COLUMN_WIDTH:
            margin = CONTINUED
        yield from textwrap.wrap(
            last, room, initial_indent=head, subsequent_indent=margin, break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Columns that the text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line, without those that are None."""
    shown = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {line(value)}")
