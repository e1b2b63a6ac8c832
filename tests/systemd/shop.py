"""The handlers that run in the box."""

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


def slow(seconds: float) -> str:
    threading.Event().wait(seconds)
    return "done"


def greedy() -> int:
    """Takes memory until it is stopped."""
    taken = []
    while True:
        taken.append(os.urandom(1 << 20))


def talk() -> None:
    """Says something in both ways."""
    print("printed")
    logging.getLogger("shop").warning("logged")


def crowd() -> int:
    """How many processes it can have beside its own."""
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


def spin(begin: float, seconds: float) -> float:
    """Seconds of processor time that it gets when it takes what it can; all on one processor."""
    os.sched_setaffinity(0, {0})
    threading.Event().wait(max(0.0, begin - time.time()))
    used, end = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return time.process_time() - used


def hang() -> None:
    """Leaves a process in a session of its own behind and never ends."""
    if os.fork() == 0:
        os.setsid()
        os.execvp("sleep", ["sleep", "4242"])
    signal.pause()


def secret() -> str:
    """What the service manager handed over as the store's password."""
    with open("/run/credentials/workerd.service/store-password") as file:
        return file.read().strip()
