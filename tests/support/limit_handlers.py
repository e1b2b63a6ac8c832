"""A handler that counts by the kernel's locks, beside workerd, how many of it run at the same time."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from workerd.handler import Context


def count_overlaps(ctx: Context, folder: str, most: int, seconds: float = 0.01) -> None:
    """Take one of `most` locks while it runs; note in the file `over` when all are taken.

    A lock ends with its process, however that dies.
    """
    for number in range(most):
        fd = os.open(Path(folder) / str(number), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        try:
            time.sleep(seconds)
        finally:
            os.close(fd)
        return
    over = os.open(Path(folder) / "over", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(over, f"{ctx.token}\n".encode())
    os.close(over)
