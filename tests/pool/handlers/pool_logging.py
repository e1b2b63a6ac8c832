"""Handlers that log by `ctx.log` and by the standard `logging`, for the tests of the pool."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import structlog

from workerd.handler import Context

_logger = logging.getLogger("shop.orders")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def ctx_log(ctx: Context) -> None:
    ctx.log.debug("too fine")
    ctx.log.error("very bad", order=7, price=1.5, paid=False, who=None, items=[1, 2])
    ctx.log.critical("worse", job="forged", worker="forged", process="forged", level="debug")
    ctx.log.info("odd", value=Unprintable(), number=2**70, **{"a\nb": 1})
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        ctx.log.exception("it failed", order=8)


def standard() -> None:
    _logger.debug("too fine")
    _logger.info("order %d", 7, extra={"customer": "ann"})
    logging.getLogger("other").critical("worse")
    _logger.info("%d", "not a number")
    try:
        raise ValueError("first")
    except ValueError:
        _logger.exception("it failed")
    print("bare")


def to_file(path: str) -> None:
    logging.basicConfig(filename=path)
    _logger.warning("in the file")
    logging.shutdown()


def to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    own = logging.getLogger("printing")
    own.addHandler(handler)
    own.propagate = False
    own.warning("once", extra={"order": 9})
    own.removeHandler(handler)


def long_records(ctx: Context) -> None:
    print("before, ", end="")
    ctx.log.warning("long", text="y" * 3000, more="z" * 3000, **{f"f{n}": "\x00" * 3000 for n in range(6)})
    try:
        raise ValueError("\x00" * 100_000)
    except ValueError:
        ctx.log.exception("\x01" * 100_000, **{f"f{n}": "\x00" * 3000 for n in range(100)})
    print("after")


def flood(ctx: Context) -> None:
    print("x" * 1000 * 1000)
    for n in range(10_000):
        ctx.log.warning("flood", n=n)


def many_errors(ctx: Context) -> None:
    for n in range(20):
        ctx.log.error("the same", order=n)


def dies(ctx: Context) -> None:
    ctx.log.error("last words", order=1)
    _logger.error("very last words")
    os._exit(3)


def leaves_a_thread(ctx: Context, path: str) -> None:
    def talk() -> None:
        while not Path(path).exists():
            time.sleep(0.002)
        ctx.log.warning("late", order=1)
        Path(path).unlink()

    threading.Thread(target=talk).start()


def releases_thread(path: str) -> None:
    Path(path).touch()
    while Path(path).exists():
        time.sleep(0.002)
    print("own")


def imitates() -> None:
    os.write(1, b"\x1eworkerd 1.1 0 {}\n")
    os.write(1, b"\x1eworkerd 1.1 0 \xff\n")
    os.write(1, b"\x1e\n")
    os.write(1, b"\x1eworkerd 1.2 1 " + b"[" * 3000 + b"\n")
    os.write(1, b"\x1eworkerd 1.2 0 \n")
    os.write(1, b"\x1eworkerd")


def log_in_children(ctx: Context) -> Any:
    pids = []
    for n in range(4):
        pid = os.fork()
        if not pid:
            for i in range(20):
                ctx.log.warning("child", n=n, i=i, text="t" * 3900, more="u" * 3900)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    warnings.warn("printed", stacklevel=1)


def by_structlog() -> None:
    structlog.get_logger().debug("too fine")
    structlog.get_logger("shop").error("very bad", order=7)
