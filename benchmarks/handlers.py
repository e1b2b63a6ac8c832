"""The handlers of the benchmarks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import Any

from workerd.handler import Context, Result


def noop(n: int = 0, email: str = "", subject: str = "") -> int:
    """Return a number as the payload."""
    return n


def sleep(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def payload(size: int) -> bytes:
    """So many bytes."""
    return b"x" * size


def swallow_vars(data: str) -> int:
    """Takes a large argument."""
    return len(data)


def _note(path: str, *words: object) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


def stamp(path: str, sent: int) -> None:
    """Notes how many nanoseconds ago it was sent."""
    now = time.monotonic_ns()
    _note(path, sent, now)


def trace(ctx: Context, path: str, seconds: float = 0.0) -> None:
    """Notes that this attempt began, and works for a while."""
    _note(path, ctx.job_id, ctx.attempt, time.monotonic_ns())
    if seconds:
        time.sleep(seconds)


# -- jobs that never end; each records its start and its processes


def loop(path: str) -> None:
    """Pure Python, for ever."""
    _note(path, time.monotonic_ns(), os.getpid())
    while True:
        pass


def c_code(path: str) -> Any:
    """C code that holds the GIL and checks no signal."""
    _note(path, time.monotonic_ns(), os.getpid())
    return sum(range(10**13))


def swallow(path: str) -> None:
    """Swallow every exception."""
    _note(path, time.monotonic_ns(), os.getpid())
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            pass


def grandchild(path: str) -> None:
    """Wait for a child that left the process group and session."""
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    _note(path, time.monotonic_ns(), os.getpid(), child.pid)
    while True:
        with contextlib.suppress(BaseException):
            child.wait()


def hand_on(ctx: Context) -> Result:
    """A job of a request: passes a value on under its own name."""
    return Result(payload=ctx.params["n"], extras={ctx.handler: ctx.params["n"]})
