"""Handlers that print and log step by step, as their vars say."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workerd.handler import Context


def _write(ctx: Context, text: str) -> None:
    """Past Python's buffers, as C code does."""
    os.write(1, text.encode())


def _wait(ctx: Context, path: str) -> None:
    end = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.005)


def _flood(ctx: Context, count: int) -> None:
    for n in range(count // 1000):
        print(f"flood {n}\n" + "x" * (990 - len(str(n))))
    print("the end")


def _raise(ctx: Context) -> None:
    raise ValueError("as told")


def _bytes(ctx: Context) -> None:
    os.write(1, b"\xff\xfe \x00 \x1b[31m <b>\xc3\xbc\r\n")


STEPS: dict[str, Callable[..., object]] = {
    "print": lambda ctx, text: print(text),
    "write": _write,
    "bytes": _bytes,
    "flood": _flood,
    "attempt": lambda ctx: print("attempt", ctx.attempt),
    "log": lambda ctx, text: ctx.log.info(text, n=1),
    "logging": lambda ctx, text: logging.getLogger("x").warning(text),
    "wait": _wait,
    "raise": _raise,
    "kill": lambda ctx: os.kill(os.getpid(), signal.SIGKILL),
    "abort": lambda ctx: os.abort(),
    "exit": lambda ctx: os._exit(3),
}


def talk(ctx: Context, steps: list[Any]) -> None:
    """Do these steps, each a name of STEPS and its arguments."""
    for name, *arguments in steps:
        STEPS[name](ctx, *arguments)
    sys.stdout.flush()
