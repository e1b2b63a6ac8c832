"""What a process may use, and what it does use, without cgroups."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")

HEADROOM = 2
"""RLIMIT_DATA is so many times `memory_max`: it counts what was asked for, not what is used, so the true
limit is kept by looking at the resident size; this one stops a process that grows faster than one looks."""


def limit_data(memory_max: int) -> None:
    """Bound what this process and its children can allocate, relative to what it has now; bytes."""
    soft = _data_size() + memory_max * HEADROOM
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def limit_processes(more: int) -> None:
    """Let this process and its children make about `more` processes and threads; root is not bound.

    The kernel counts all of this user's, so what others of them have now is added.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    soft = _tasks_of_user() + more
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


def _tasks_of_user() -> int:
    own, count = os.getuid(), 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == own:
                count += len(os.listdir(folder / "task"))
    return count


def resident(pid: int) -> int:
    """Bytes of memory that `pid` has resident, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def _data_size() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0
