"""Environment variables that no child may see, taken out for good."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_ENV_START = 47
"""Where the block begins: field 50 of /proc/PID/stat, counted from behind the name."""
_LARGEST = 4 << 20
"""Bytes; the kernel gives no process more."""


def hide(prefix: str) -> int:
    """Take all variables whose names begin so out of this process, into a descriptor for `hidden`.

    The kernel shows the block that a process was started with as /proc/PID/environ, of it and of all that
    it forks, whatever became of `os.environ`. They are overwritten there, and where Python had them.
    """
    fd = os.memfd_create("workerd-environment", os.MFD_CLOEXEC)
    start = prefix.encode()
    for name in [name for name in os.environb if name.startswith(start)]:
        value = os.environb.pop(name)
        os.writev(fd, [name, b"=", value, b"\0"])
        if len(value) > 1:  # the shorter ones are shared by the whole interpreter
            ctypes.memset(id(value) + bytes.__basicsize__ - 1, 0, len(value))
    _overwrite(start)
    return fd


def hidden(fd: int) -> dict[str, str]:
    """What `hide` has taken out."""
    lines = os.pread(fd, _LARGEST, 0).split(b"\0")[:-1]
    pairs = (line.partition(b"=") for line in lines)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _overwrite(prefix: bytes) -> None:
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start = int(stat[_ENV_START])  # 0 where it may not be known, and then environ is hidden too
    block = bytearray(_LARGEST)
    with Path("/proc/self/environ").open("rb", buffering=0) as file:
        length = file.readinto(block) or 0
    at = 0
    while start and at < length:
        end = block.find(0, at, length)
        end = length if end < 0 else end
        if block.startswith(prefix, at):
            # Nobody reads it any more: pop() has taken it out of the C library's list.
            ctypes.memset(start + at, 0, end - at)
        at = end + 1
    block[:length] = bytes(length)
