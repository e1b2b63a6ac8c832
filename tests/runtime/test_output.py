"""Output of a child: lines, periods, limits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from workerd.runtime.loop import Loop
from workerd.runtime.output import MAX_LINE_BYTES, MAX_PERIOD_BYTES, MIN_LINE_COST_BYTES, OutputReader


class Printer:
    def __init__(self, loop: Loop) -> None:
        reading, self.fd = os.pipe()
        self.lines: list[str] = []
        self.output = OutputReader(loop, reading, self.lines.extend)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data[:4096]) :]
            self.output.drain()

    def close(self) -> None:
        os.close(self.fd)
        self.output.close()


@pytest.fixture
def printer(loop: Loop) -> Iterator[Printer]:
    made = Printer(loop)
    yield made
    made.close()


def test_lines_are_reassembled_from_any_chunks(printer: Printer) -> None:
    """The unfinished one at the end of its period; invalid UTF-8 is replaced."""
    for part in (b"on", b"e\ntw", b"o\n\n\xff", b"three"):
        printer.write(part)
    assert printer.lines == ["one", "two"]
    assert printer.output.end_period() == 0
    assert printer.lines[2:] == ["�three"]
    assert not printer.output.touched


@pytest.mark.parametrize(
    "line", [b"x\n", b"\n", b"y" * 99 + b"\n", b"z" * 100_000, b"\xf0\x9f\x98\x80" * 3000]
)
def test_no_more_of_a_period_is_passed_on_than_its_limit(printer: Printer, line: bytes) -> None:
    """Of many short lines, one endless line, or nothing but newlines; the rest is counted to the byte."""
    data = line * (1_000_000 // len(line))
    printer.write(data)
    dropped = printer.output.end_period()
    assert sum(map(len, printer.lines)) <= MAX_PERIOD_BYTES
    assert len(printer.lines) <= MAX_PERIOD_BYTES // MIN_LINE_COST_BYTES + MAX_PERIOD_BYTES // MAX_LINE_BYTES
    assert max(map(len, printer.lines), default=0) <= MAX_LINE_BYTES
    assert dropped > 500_000
    printer.write(b"again\n")
    assert printer.lines[-1] == "again"
