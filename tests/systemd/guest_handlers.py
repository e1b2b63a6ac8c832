"""Handlers of the daemon in the guest, which has no copy of the other tests."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time


def add(a: int, b: int) -> int:
    return a + b


def multiply(a: int, b: int) -> int:
    return a * b


def fail() -> None:
    raise RuntimeError("it failed")


def which() -> int:
    """Return the number of this code, which an upgrade changes."""
    return 1


def slow(seconds: float) -> str:
    threading.Event().wait(seconds)
    return "done"


def greedy() -> int:
    """Allocate memory until killed."""
    taken = []
    while True:
        taken.append(os.urandom(1 << 20))


def print_and_log() -> None:
    """Print a line and log one."""
    print("printed")
    logging.getLogger("guest").warning("logged")


def fork_until_refused() -> int:
    """Fork until the kernel refuses; return the number of children."""
    pids: list[int] = []
    try:
        while len(pids) < 200:
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            pids.append(pid)
    except BlockingIOError:
        pass
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return len(pids)


def spin(start_at: float, seconds: float) -> float:
    """Use all CPU time available on CPU 0 from `start_at` for `seconds`; return the seconds obtained."""
    os.sched_setaffinity(0, {0})
    threading.Event().wait(max(0.0, start_at - time.time()))
    used, end = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return time.process_time() - used


def hang() -> None:
    """Start a process in its own session and never return."""
    if os.fork() == 0:
        os.setsid()
        os.execvp("sleep", ["sleep", "4242"])
    signal.pause()


def read_credential() -> str:
    """Return the store's password as passed by the service manager."""
    with open("/run/credentials/workerd.service/store-password") as file:
        return file.read().strip()
