"""The daemon, in which one process halts at one point; nothing of this is in the program itself.

    python -m tests.support.halting POINT WHAT MARK run -c …

POINT is `module:Class.function`. WHAT is `before` or `after`: the signal falls before or after that call, in
the first process that gets there and makes the file MARK. `clock` as POINT sets the machine's clock WHAT
seconds off instead.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def halt(mark: Path) -> None:
    """SIGKILL to this process, unless another one had it before."""
    try:
        mark.open("x").close()
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def patch(point: str, when: str, mark: Path) -> None:
    """Let the function at `point` halt its process."""
    module_name, _, path = point.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, name)

    @functools.wraps(real)
    def call(*args: Any, **keys: Any) -> Any:
        if when == "before":
            halt(mark)
        value = real(*args, **keys)
        if when == "after":
            halt(mark)
        return value

    setattr(owner, name, call)


def shift_clock(seconds: float) -> None:
    """Put the wall clock off; the monotonic clock stays."""
    real, real_ns = time.time, time.time_ns
    later: Callable[[], float] = lambda: real() + seconds  # noqa: E731
    later_ns: Callable[[], int] = lambda: real_ns() + int(seconds * 1e9)  # noqa: E731
    time.time, time.time_ns = later, later_ns


def main() -> int:
    point, what, mark, *words = sys.argv[1:]
    if point == "clock":
        shift_clock(float(what))
    else:
        patch(point, what, Path(mark))
    from workerd.cli.main import main as workerd

    return workerd(words)


if __name__ == "__main__":
    sys.exit(main())
