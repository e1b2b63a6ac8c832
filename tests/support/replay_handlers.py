"""Handlers for `job run`: what a replay sees, fails of, is killed for and leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Annotated, Any

from workerd import Context, Retry, Secret


def see(ctx: Context, a: int = 1, password: Annotated[str, Secret] = "") -> dict[str, Any]:
    """Save, print and return what this run sees."""
    print(f"printed {password}", flush=True)
    before = ctx.saved
    ctx.save({"seen": a})
    return {
        "a": a,
        "attempt": ctx.attempt,
        "env": os.environ.get("OF_THE_POOL"),
        "initialised": os.environ.get("INITIALISED"),
        "needs": ctx.needs,
        "params": ctx.params,
        "password": password,
        "replay": ctx.replay,
        "saved": before,
    }


def initialise() -> None:
    """The pool's `init`."""
    os.environ["INITIALISED"] = "yes"


def save_and_fail(ctx: Context) -> None:
    """Save, and ask for another attempt."""
    ctx.save({"place": ctx.attempt})
    raise Retry("not yet", after=0)


def wrong(number: int = 1) -> None:
    """Raise."""
    total = number + 41
    raise ValueError(f"no {total}")


def crash() -> None:
    """Die by a signal."""
    os.kill(os.getpid(), signal.SIGSEGV)


def much() -> str:
    """Return more than the tests' limit of a payload."""
    return "x" * 100_000


def stay(path: str) -> None:
    """Start a process in a session of its own, and swallow every interruption."""
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    with open(path, "w") as file:
        file.write(f"{os.getpid()} {process.pid}")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


def grow() -> None:
    """Take memory until it is killed."""
    kept = []
    while True:
        kept.append(bytearray(b"x" * 10_000_000))
        time.sleep(0.01)


def flood() -> None:
    """Print without end, whatever is raised here."""
    while True:
        try:
            while True:
                os.write(1, b"x" * 4000 + b"\n")
        except BaseException:
            continue


def leave_flood() -> None:
    """Leave a process that prints without end."""
    subprocess.Popen(["/usr/bin/yes"])
