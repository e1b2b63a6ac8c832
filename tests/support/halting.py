"""Runs the daemon with fault injection: one process kills itself at one point, or the clock is shifted.

    python -m tests.support.halting POINT WHEN MARK run -c …

POINT is `module:Class.function`. WHEN is `before` or `after`: the first process that reaches POINT creates
the file MARK and kills itself before or after that call. With `clock` as POINT, the wall clock is shifted by
WHEN seconds instead.
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


def kill_once(mark: Path) -> None:
    """Kill this process, unless another process was killed before."""
    try:
        mark.open("x").close()
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def patch(point: str, when: str, mark: Path) -> None:
    """Make the function at `point` kill its process."""
    module_name, _, path = point.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, name)

    @functools.wraps(real)
    def call(*args: Any, **keys: Any) -> Any:
        if when == "before":
            kill_once(mark)
        value = real(*args, **keys)
        if when == "after":
            kill_once(mark)
        return value

    setattr(owner, name, call)


def shift_clock(seconds: float) -> None:
    """Shift the wall clock; the monotonic clock stays."""
    real, real_ns = time.time, time.time_ns
    shifted: Callable[[], float] = lambda: real() + seconds  # noqa: E731
    shifted_ns: Callable[[], int] = lambda: real_ns() + int(seconds * 1e9)  # noqa: E731
    time.time, time.time_ns = shifted, shifted_ns


def main() -> int:
    point, when, mark, *arguments = sys.argv[1:]
    if point == "clock":
        shift_clock(float(when))
    else:
        patch(point, when, Path(mark))
    from workerd.cli.main import main as workerd

    return workerd(arguments)


if __name__ == "__main__":
    sys.exit(main())
