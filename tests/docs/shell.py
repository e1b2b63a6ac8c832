"""A shell that runs one piece of a page after another, as the one terminal of its reader."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from pathlib import Path

LIMIT_S = 60.0
"""For one piece."""


class ShellFailed(Exception):
    """A command that ended with another status than the page says, or not in time."""


class Shell:
    """bash with `set -eu`: variables, folder and functions stay from piece to piece.

    `folder`: where the pieces and their output are kept.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._count = 0
        self._statuses, writer = os.pipe()
        self._writer = writer
        self._process = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            env=environment,
            pass_fds=(writer,),
            start_new_session=True,
            text=True,
        )
        os.close(writer)
        self._send("set -eu")

    def run(self, text: str, exit_status: int = 0) -> str:
        """Run `text`, whose last command ends with `exit_status`; returns what it printed, errors too.

        Raises ShellFailed with the output.
        """
        self._count += 1
        script, output = (self._folder / f"{self._count}.{kind}" for kind in ("sh", "out"))
        script.write_text(_checked(text, exit_status) if exit_status else text)
        w = self._writer
        # Nothing that is started here may hold the pipe open.
        self._send(f". '{script}' >'{output}' 2>&1 </dev/null {w}>&-; echo done >&{w}")
        ready, _, _ = select.select([self._statuses], [], [], LIMIT_S)
        printed = output.read_text(errors="replace") if output.exists() else ""
        if not ready:
            self.close()
            raise ShellFailed(f"not done in {LIMIT_S:.0f} s:\n{text}\n{printed}")
        if not os.read(self._statuses, 16):
            raise ShellFailed(f"status {self._process.wait()}, expected {exit_status}:\n{text}\n{printed}")
        return printed

    def close(self) -> None:
        """End it with everything that it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ShellFailed("the shell is gone") from None


def _checked(text: str, exit_status: int) -> str:
    return f"status=0\n{text.strip()} || status=$?\n[ $status -eq {exit_status} ] || exit $status"


def commands(text: str) -> list[tuple[str, str]]:
    """(command, output) of each `$ command` in a block of the language console."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found and not found[-1][1] and _is_open(found[-1][0]):
            command, _ = found.pop()
            found.append((command + line, ""))
        elif found:
            command, output = found.pop()
            found.append((command, output + line))
        elif line.strip():
            raise ValueError(f"expected `$ ` before the first command, got {line!r}")
    return found


def _is_open(command: str) -> bool:
    return command.rstrip("\n").endswith("\\") or command.count("'") % 2 == 1
