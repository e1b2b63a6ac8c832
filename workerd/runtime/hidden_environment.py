"""Environment variables taken out of a process, so that neither it nor its children show them.

The kernel shows the block that a process was started with in /proc/PID/environ, of the process and of
everything it forks, whatever `os.environ` holds.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_ENV_START_FIELD = 47
"""Where the block begins: field 50 of /proc/PID/stat, counted from behind the process's name."""
_MAX_BLOCK_BYTES = 4 << 20
"""The kernel gives no process more."""


def hide_environment(prefix: str) -> int:
    """Move all variables with this prefix into an anonymous file; returns its descriptor.

    They are overwritten in the process's initial block, and where Python kept them.
    """
    fd = os.memfd_create("workerd-environment", os.MFD_CLOEXEC)
    start = prefix.encode()
    for name in [name for name in os.environb if name.startswith(start)]:
        value = os.environb.pop(name)
        os.writev(fd, [name, b"=", value, b"\0"])
        if len(value) > 1:  # shorter ones are shared by the whole interpreter
            ctypes.memset(id(value) + bytes.__basicsize__ - 1, 0, len(value))
    _overwrite(start)
    return fd


def hidden_environment(fd: int) -> dict[str, str]:
    """The variables that `hide_environment` moved into `fd`."""
    lines = os.pread(fd, _MAX_BLOCK_BYTES, 0).split(b"\0")[:-1]
    pairs = (line.partition(b"=") for line in lines)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _overwrite(prefix: bytes) -> None:
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start = int(stat[_ENV_START_FIELD])  # 0 where it may not be known; then environ is hidden too
    block = bytearray(_MAX_BLOCK_BYTES)
    with Path("/proc/self/environ").open("rb", buffering=0) as file:
        length = file.readinto(block) or 0
    at = 0
    while start and at < length:
        end = block.find(0, at, length)
        end = length if end < 0 else end
        if block.startswith(prefix, at):
            # Nothing reads it any more: pop() has taken it out of the C library's list.
            ctypes.memset(start + at, 0, end - at)
        at = end + 1
    block[:length] = bytes(length)
