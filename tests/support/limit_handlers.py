"""A handler that counts by the kernel's locks, beside workerd, how many of it run at the same time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path

from tests.support.handlers import record
from workerd.handler import Context, Retry


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


MOST, GROUP_MOST = 6, 2
"""What may run at the same time of `record_overlaps`: in all, and of each tenant."""


def record_overlaps(ctx: Context, path: str, tenant: str) -> None:
    """As `record` of `handlers`; and take a lock of all, and one of the tenant's, while it runs."""
    record(ctx, path)
    of_tenant = hashlib.sha256(tenant.encode()).hexdigest()[:8]
    for name, most in (("all", MOST), (of_tenant, GROUP_MOST)):
        folder = Path(f"{path}.{name}")
        folder.mkdir(exist_ok=True)
        if not any(_lock(folder / str(number)) for number in range(most)):
            with _over(path).open("a") as file:
                file.write(f"{name} {ctx.token}\n")
    time.sleep(0.005)
    _unlock_all()


def counted_over(path: Path) -> int:
    """How many runs of `record_overlaps` found all locks taken."""
    found = _over(str(path))
    return len(found.read_text().splitlines()) if found.exists() else 0


def _over(path: str) -> Path:
    return Path(f"{path}.over")


_locks: list[int] = []


def _lock(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    _locks.append(fd)
    return True


def _unlock_all() -> None:
    while _locks:
        os.close(_locks.pop())


def work_or_hold(ctx: Context, hold: str = "", seconds: float = 0.01) -> None:
    """Work for a moment; with `hold`, let nobody start another one of that scope for `seconds`."""
    if hold and ctx.attempt == 1:
        raise Retry("429", after=seconds, counted=False, hold=hold)  # type: ignore[arg-type]
    time.sleep(seconds if not hold else 0)
