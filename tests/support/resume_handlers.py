"""Handlers that save and go on: each writes what it does to a file, independent of the store."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from workerd.handler import Context, Interrupted, handler


def _append(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def rows(ctx: Context, path: str, count: int, pause: float = 0.0, wait: bool = False) -> int:
    """Write "row N" for each row, and "saved N" once the save of it was acknowledged."""
    for row in range(ctx.saved or 0, count):
        _append(path, f"row {row}")
        ctx.save(row + 1, wait=wait)
        _append(path, f"saved {row + 1}")
        if pause:
            time.sleep(pause)
    return count


@handler(deadline="1s", grace="1s")
def hangs_after_saving(ctx: Context) -> str:
    """Be killed at the hard deadline in the first attempt."""
    if ctx.saved is not None:
        return str(ctx.saved)
    ctx.save("place")
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    time.sleep(60)
    return "never"


def steps(ctx: Context, path: str, die: bool = True) -> list[object]:
    """Charge in a step, then die in the first attempt."""
    charged = ctx.step("charge", lambda: (_append(path, "charged"), (1, "receipt"))[1])
    if die and ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    mailed = ctx.step("mail", lambda: _append(path, "mailed"))
    return [charged, mailed]


async def async_steps(ctx: Context, path: str) -> str:
    """The same with an async function."""

    async def charge() -> str:
        await asyncio.sleep(0)
        _append(path, "charged")
        return "receipt"

    receipt: str = await ctx.step("charge", charge)
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return receipt


def fails_with_state(ctx: Context, until: str) -> object:
    """Save, and fail until a file exists."""
    before = ctx.saved
    if not Path(until).exists():
        ctx.save({"before": before})
        raise ValueError("not yet")
    return before


@handler(resumable=True)
def resumable(ctx: Context, path: str, until: str) -> str:
    """Run until a file exists; save when interrupted."""
    _append(path, f"began {ctx.attempt} {ctx.saved}")
    try:
        while not Path(until).exists():
            time.sleep(0.01)
    except Interrupted:
        assert ctx.stopping
        ctx.save("interrupted")
        raise
    return str(ctx.saved)
