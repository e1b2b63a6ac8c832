"""Commands on a terminal of their own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.daemon import ROOT

TIMEOUT_S = 60.0


class Terminal:
    """A command that runs on a pseudo-terminal, of `columns` and `lines`; what it writes is kept."""

    def __init__(
        self, words: Sequence[str], columns: int = 80, lines: int = 24, env: dict[str, str] | None = None
    ) -> None:
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        variables = {"TERM": "xterm", "NO_COLOR": "1", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
        environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workerd", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environ, **variables, **(env or {})},
            cwd=Path("/"),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.output = ""

    def read_until(self, text: str) -> str:
        """All output so far, once it contains `text` behind what was returned before."""
        start = len(self.output)
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.output[start:]:
            assert self._read(deadline - time.monotonic()), self.output
        return self.output[start:]

    def write(self, text: str) -> None:
        """Press keys."""
        os.write(self._fd, text.encode())

    def finish(self) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._read(deadline - time.monotonic()):
            pass
        os.close(self._fd)
        return self.process.wait(TIMEOUT_S)

    def _read(self, timeout_s: float) -> bool:
        """Read what is there; False at the end."""
        if not select.select([self._fd], [], [], max(0.0, timeout_s))[0]:
            raise AssertionError(f"no output in time; before:\n{self.output}")
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the other side is closed
            return False
        self.output += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)


def on_terminal(*words: str, columns: int = 80, answer: str = "") -> tuple[int, str]:
    """Exit status and output of a command on a terminal; `answer` is typed at the start."""
    terminal = Terminal(words, columns)
    if answer:
        terminal.write(answer)
    return terminal.finish(), terminal.output
