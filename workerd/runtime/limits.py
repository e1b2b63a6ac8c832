"""Limits and measurements of a process without control groups."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

DATA_LIMIT_FACTOR = 2
"""RLIMIT_DATA as a multiple of `memory_max`: it counts what is allocated, not what is used. `memory_max` is
enforced by checking the resident size; this stops a process that grows faster than it is checked."""


POOL_NICENESS = 2
"""Added to what the daemon was started with, so that roles get a processor before pools."""
WORKER_NICENESS = 3
"""Added to that of the pool, which must see a deadline while its workers use all processors."""
WORKER_OOM_SCORE = 500
"""Added for workers: without room for half of the memory, the kernel kills one of them and no role."""
_MAX_OOM_SCORE = 1000


def yield_processors(niceness: int) -> None:
    """Let processes that have not yielded as much run first."""
    with contextlib.suppress(OSError):
        os.nice(niceness)


def be_killed_first() -> None:
    """Let the kernel choose this process and its children when memory runs out."""
    file = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        file.write_text(str(min(_MAX_OOM_SCORE, int(file.read_text()) + WORKER_OOM_SCORE)))


def limit_data(memory_max: int) -> None:
    """Limit what this process and its children can allocate beyond what it has now; bytes."""
    soft = _data_size() + memory_max * DATA_LIMIT_FACTOR
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def limit_processes(more: int) -> None:
    """Allow about `more` processes and threads to this process and its children; root is not limited.

    The kernel counts all tasks of the user, so those that exist now are added.
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
        # Not the folder's owner: those of processes that forbid inspection are root's.
        with contextlib.suppress(OSError, ValueError):
            fields = dict(
                line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
            )
            if int(fields.get("Uid", "-1").split()[0]) == own:
                count += int(fields.get("Threads", "1"))
    return count


def own_usage() -> dict[str, float]:
    """`cpu_s` and `rss_bytes` of this process, which others may not be allowed to see in /proc."""
    times = os.times()
    return {"cpu_s": round(times.user + times.system, 2), "rss_bytes": resident_bytes(os.getpid())}


def resident_bytes(pid: int) -> int:
    """The resident size of `pid` in bytes, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def cpu_us_of(usage: resource.struct_rusage) -> int:
    """User and system time in microseconds."""
    return round((usage.ru_utime + usage.ru_stime) * 1e6)


def _data_size() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
