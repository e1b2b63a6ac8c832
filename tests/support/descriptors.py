"""The descriptors of this process: which are open, and a limit on them."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Iterator


def open_descriptors() -> dict[int, str]:
    """What each of those that are open leads to, by number.

    Two calls can be compared: what earlier tests left to the garbage collector is closed first, rather
    than at any moment between them.
    """
    gc.collect()
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # those of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@contextlib.contextmanager
def spare_descriptors(count: int) -> Iterator[None]:
    """Within the block just so many more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 1 + count, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for fd in held[len(held) - count :]:
            os.close(fd)
        del held[len(held) - count :]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
