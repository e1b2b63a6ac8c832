"""The handlers that run in the box."""

from __future__ import annotations

import os
import signal
import threading


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
