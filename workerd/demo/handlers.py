"""The demo's handlers: one that works on real input, and one for each other way to end."""

from __future__ import annotations

import ast
import os
import signal
import time
from collections import Counter
from pathlib import Path

from workerd import Context, Failure, Retry


def parse_source(file: str) -> dict[str, int]:
    """Parse a Python source file and count what is in it; a broken file is an error."""
    source = Path(file).read_bytes()
    nodes = Counter(type(node).__name__ for node in ast.walk(ast.parse(source, file)))
    return {
        "bytes": len(source),
        "lines": source.count(b"\n"),
        "nodes": nodes.total(),
        "functions": nodes["FunctionDef"] + nodes["AsyncFunctionDef"] + nodes["Lambda"],
        "classes": nodes["ClassDef"],
        "imports": nodes["Import"] + nodes["ImportFrom"],
    }


def comes_round(ctx: Context) -> str:
    """Ask for two more tries, then succeed."""
    if ctx.attempt < 3:
        raise Retry("the other side is not there yet", after=0.2)
    return f"done at attempt {ctx.attempt}"


def breaks(order: int) -> None:
    """Raise an error that the policy retries until the attempts are used up."""
    raise ConnectionError(f"order {order}: connection refused")


def gives_up(order: int) -> None:
    """Decide that trying again makes no sense."""
    raise Failure(f"order {order} was cancelled by the customer")


def shrugs(path: str) -> int:
    """Raise an error that its configuration lists in `ignore`."""
    return Path(path).stat().st_size


class Rests:
    """Has nothing to do: `active` says so before each run."""

    def active(self) -> bool:
        return False

    def ensure(self, ctx: Context) -> None:
        """Never called while `active` is false."""


def sleeps(ctx: Context) -> None:
    """Sleep past the soft deadline, which is raised in it."""
    ctx.progress(0.5, "half way, and then a nap")
    time.sleep(60)


def computes() -> int:
    """Compute in C, holding the GIL, looking at nothing: only force ends it."""
    return sum(range(10**13))


def crashes() -> None:
    """Die of a signal, as a broken extension module does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def exits() -> None:
    """End the whole process, without a word."""
    os._exit(3)


def waits(ctx: Context) -> None:
    """Wait until somebody cancels it."""
    while not ctx.stopping:
        time.sleep(0.02)
