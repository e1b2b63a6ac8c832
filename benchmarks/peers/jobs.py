"""The jobs of every peer; each records its start with one write."""

from __future__ import annotations

import os
import signal
import time

LOG = os.environ.get("PEER_LOG", os.devnull)
LIMITED = ("spin", "c_code")
"""Jobs that never end: each peer limits them to one second by its own means."""


def _note(*words: object) -> None:
    fd = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


def noop(n: int = 0, email: str = "", subject: str = "") -> int:
    """Nothing; its number is the result."""
    _note("noop", n, time.monotonic_ns(), os.getpid())
    return n


def stamp(sent: int) -> None:
    """How long ago it was sent."""
    _note("stamp", sent, time.monotonic_ns(), os.getpid())


def spin() -> None:
    """Pure Python, for ever."""
    _note("spin", 0, time.monotonic_ns(), os.getpid())
    try:
        while True:
            pass
    finally:
        _note("ended", 0, time.monotonic_ns(), os.getpid())


def c_code() -> int:
    """C code that holds the GIL and checks no signal."""
    _note("c_code", 0, time.monotonic_ns(), os.getpid())
    try:
        return sum(range(10**13))
    finally:
        _note("ended", 0, time.monotonic_ns(), os.getpid())


def die() -> None:
    """Kill the own process, like the kernel's OOM killer."""
    _note("die", 0, time.monotonic_ns(), os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


JOBS = {job.__name__: job for job in (noop, stamp, spin, c_code, die)}
