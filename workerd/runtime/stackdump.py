"""The stacks of a process that had to be killed: Python's, else what /proc says."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

DUMP_LIMIT = 64 * 1024
"""Bytes that are read of a dump."""


class StackDump:
    """A memfd that a child's faulthandler writes into and that its parent reads.

    Both share one file description, so that the parent can start a new dump by setting it back.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("workerd-dump", os.MFD_CLOEXEC)

    def clear(self) -> None:
        """Forget what was written."""
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)

    def size(self) -> int:
        """Bytes written since `clear`."""
        return os.fstat(self.fd).st_size

    def text(self) -> str:
        """What was written, at most DUMP_LIMIT bytes of it."""
        return os.pread(self.fd, DUMP_LIMIT, 0).decode("utf-8", "replace")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def kernel_view(pid: int) -> str:
    """Where the kernel sees `pid`: its state and, where we may read them, its wait channel and stack."""
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
        return "no Python stack came, and /proc tells nothing of the process"
    return "no Python stack came; /proc says of the process:\n" + "\n".join(lines)


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace")
    return ""
