"""The stacks of a process that has to be killed: Python's own, or else what /proc shows."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

MAX_DUMP_BYTES = 64 * 1024
DUMP_TIMEOUT_S = 0.1
"""For writing the stacks before a kill: takes 1 ms, but on a busy machine a process may not run for 20 ms,
and why it hung is worth the wait."""


class StackDump:
    """An anonymous file that a child's faulthandler writes and its parent reads.

    Both share one file description, so the parent can rewind it for a new dump.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("workerd-dump", os.MFD_CLOEXEC)
        self._seen = 0
        self._until = 0.0

    def begin(self) -> None:
        """Empty the file for a dump that is written from now on."""
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self._seen = 0
        self._until = time.monotonic() + DUMP_TIMEOUT_S

    def has_ended(self) -> bool:
        """Whether nothing was added since the last call, or DUMP_TIMEOUT_S have passed since `begin`."""
        size, before = self.size(), self._seen
        self._seen = size
        return 0 < size == before or time.monotonic() >= self._until

    def size(self) -> int:
        """Bytes written since `begin`."""
        return os.fstat(self.fd).st_size

    def text(self) -> str:
        """What was written, at most MAX_DUMP_BYTES."""
        return os.pread(self.fd, MAX_DUMP_BYTES, 0).decode("utf-8", "replace")

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def kernel_view(pid: int) -> str:
    """What /proc shows of `pid`: its state and, where readable, its wait channel and kernel stack."""
    lines = [
        "  " + line.replace("\t", " ")
        for line in _read(pid, "status").splitlines()
        if line.startswith(("State:", "Threads:", "SigBlk:"))
    ]
    for name, label in (("wchan", "waits in"), ("syscall", "system call"), ("stack", "kernel stack")):
        text = _read(pid, name).strip()
        if text and text != "0":
            lines.append(f"  {label}: " + text.replace("\n", "\n    "))
    if not lines:
        return "no Python stack was written, and /proc shows nothing of the process"
    return "no Python stack was written; /proc shows:\n" + "\n".join(lines)


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace")
    return ""
