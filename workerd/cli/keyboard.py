"""Single keys from a terminal, without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

_MAX_SEQUENCE_BYTES = 64


class Key(StrEnum):
    """Keys that are no character."""

    UP = "up"
    DOWN = "down"
    PAGE_UP = "page up"
    PAGE_DOWN = "page down"
    HOME = "home"
    ESCAPE = "escape"
    ENTER = "enter"
    BACKSPACE = "backspace"
    END_OF_INPUT = "end of input"


_SEQUENCES = {
    "\x1b[A": Key.UP, "\x1bOA": Key.UP, "\x1b[B": Key.DOWN, "\x1bOB": Key.DOWN,
    "\x1b[5~": Key.PAGE_UP, "\x1b[6~": Key.PAGE_DOWN, "\x1b[H": Key.HOME, "\x1b[1~": Key.HOME,
    "\x1b": Key.ESCAPE, "\r": Key.ENTER, "\n": Key.ENTER, "\x7f": Key.BACKSPACE, "\b": Key.BACKSPACE,
    "\x04": Key.END_OF_INPUT,
}  # fmt: skip


class Keyboard:
    """The keys of standard input; none where it is no terminal."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keys arrive at once and are not echoed; Ctrl-C still interrupts."""
        if self._fd is None:
            yield
            return
        before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        try:
            yield
        finally:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    def wait(self, timeout_s: float) -> list[str]:
        """The keys pressed together, as soon as there are any; none after `timeout_s`."""
        if self._fd is None:
            time.sleep(timeout_s)
            return []
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return []
        data = os.read(self._fd, _MAX_SEQUENCE_BYTES)
        return split_keys(data.decode("utf-8", "ignore")) if data else [Key.END_OF_INPUT]


def split_keys(text: str) -> list[str]:
    """The keys of what a terminal sent; unknown sequences are left out."""
    keys: list[str] = []
    while text:
        found = next((s for s in sorted(_SEQUENCES, key=len, reverse=True) if text.startswith(s)), "")
        if found == "\x1b" and len(text) > 1:
            break  # a sequence that is not known
        if found:
            keys.append(_SEQUENCES[found])
        elif text[0].isprintable():
            keys.append(text[0])
        text = text[len(found) or 1 :]
    return keys
