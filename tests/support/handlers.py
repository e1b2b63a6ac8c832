"""Handlers for daemons under test: plain jobs, and `behave`, whose argument selects what it does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from workerd.handler import Context, Failure, Result, Retry


class Unprintable(Exception):
    """An exception whose `str()` raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Ignored(Exception):
    """Listed in `ignore` by the tests' configuration."""


def noop() -> None:
    """Do nothing."""


def add(a: int, b: int = 1) -> int:
    """Add two integers; its signature is the schema of its vars."""
    return a + b


def echo(**vars: Any) -> dict[str, Any]:
    """Return its vars."""
    return vars


def record(ctx: Context, path: str, wait: float = 0.0) -> int:
    """Append a line to a file when an attempt starts: evidence of runs independent of the store."""
    line = f"{ctx.job_id} {ctx.attempt}\n".encode()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
    if wait:
        time.sleep(wait)
    return ctx.attempt


def record_time(ctx: Context, path: str) -> None:
    """As `record`, with the time, CLOCK_MONOTONIC."""
    with open(path, "a") as file:
        file.write(f"{ctx.job_id} {ctx.attempt} {time.monotonic()}\n")


def record_process(ctx: Context, path: str, wait: float = 0.0) -> None:
    """As `record`, with the process and the time, CLOCK_MONOTONIC."""
    with open(path, "a") as file:
        file.write(f"{ctx.job_id} {os.getpid()} {time.monotonic()}\n")
    time.sleep(wait)


def note_span(path: str, value: int, seconds: float = 0.002) -> None:
    """Append when the run of this value began and ended, monotonic nanoseconds."""
    began = time.monotonic_ns()
    time.sleep(seconds)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{began} {time.monotonic_ns()} {value}\n".encode())
    finally:
        os.close(fd)


def wait_for_file(path: str, limit: float = 60.0) -> str:
    """Run until a file exists, so that the test decides when the job ends."""
    end = time.monotonic() + limit
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.005)
    return "seen"


def large_payload_after_file(path: str, size: int) -> bytes:
    """Return a payload of `size` bytes once the file exists."""
    wait_for_file(path)
    return b"x" * size


def until_stopping(ctx: Context, path: str, limit: float = 60.0) -> bool:
    """Run until `ctx.stopping`, record that it was set, and return."""
    record(ctx, f"{path}.started")
    end = time.monotonic() + limit
    while not ctx.stopping and time.monotonic() < end:
        time.sleep(0.005)
    record(ctx, path)
    return ctx.stopping


def leaves_children(ctx: Context, path: str) -> None:
    """Start a child, one in its own session and a double-forked one, write their pids and wait."""
    plain = subprocess.Popen(["sleep", "600"])
    own_session = subprocess.Popen(["sleep", "600"], start_new_session=True)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(writer, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    double_forked = int(os.read(reader, 32))
    Path(f"{path}.new").write_text(f"{os.getpid()} {plain.pid} {own_session.pid} {double_forked}")
    Path(f"{path}.new").rename(path)
    time.sleep(600)


def behave(ctx: Context, kind: str, **arguments: Any) -> Any:
    """Run the behaviour that `kind` names; see BEHAVIOURS."""
    return BEHAVIOURS[kind](ctx, **arguments)


def _ok(ctx: Context) -> dict[str, int]:
    return {"attempt": ctx.attempt}


def _payload(ctx: Context) -> bytes:
    return b"\x00\xff\xfe bytes"


def _none(ctx: Context) -> None:
    return None


def _result_false(ctx: Context) -> Result:
    return Result(success=False, payload={"half": "done"}, extras={"left": 1})


def _retry_then_ok(ctx: Context, times: int = 1) -> str:
    if ctx.attempt <= times:
        raise Retry("not yet", after=0.05)
    return "done"


def _snooze(ctx: Context) -> str:
    if ctx.attempt <= 3:
        raise Retry("later", after=0.02, counted=False)
    return "woken"


def _failure(ctx: Context) -> None:
    raise Failure("for good")


def _error(ctx: Context) -> None:
    raise ValueError("broken \x1b[31m value\nsecond line")


def _ignored(ctx: Context) -> None:
    raise Ignored("nothing to do")


def _unprintable(ctx: Context) -> None:
    raise Unprintable


def _exit(ctx: Context) -> None:
    sys.exit(3)


def _interrupt(ctx: Context) -> None:
    raise KeyboardInterrupt


def _os_exit(ctx: Context) -> None:
    os._exit(3)


def _kill_self(ctx: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault(ctx: Context) -> None:
    ctypes.string_at(0)


def _loop(ctx: Context) -> None:
    while True:
        pass


def _regex(ctx: Context) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def _sum(ctx: Context) -> int:
    return sum(range(10**13))


def _swallow(ctx: Context) -> None:
    while True:
        with contextlib.suppress(BaseException):
            while True:
                time.sleep(0.01)


def _subprocess(ctx: Context, mark: str) -> None:
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork():\n"
        "        os._exit(0)\n"
        f"open({mark!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(600)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False)


def _orphan_holding_all(ctx: Context) -> None:
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


def _prints(ctx: Context, count: int = 100_000_000) -> str:
    line = "x" * 9999 + "\n"
    for _ in range(count // 10_000):
        sys.stdout.write(line)
    return "printed"


def _closes_everything(ctx: Context) -> str:
    os.closerange(0, 101)
    return "closed"


def _forks(ctx: Context) -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


def _threads(ctx: Context) -> str:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return "threaded"


def _changes_process_state(ctx: Context) -> str:
    os.chdir("/tmp")
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(signum, lambda *a: None)
    signal.alarm(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    os.close(1)
    return "changed"


def _unencodable(ctx: Context) -> object:
    return {"socket": threading.Lock()}


def _big(ctx: Context, size: int) -> bytes:
    return b"x" * size


def _long_error(ctx: Context, size: int = 70_000) -> None:
    raise ValueError("e" * size)


def _surrogate(ctx: Context) -> None:
    raise ValueError("lone \ud800 surrogate and \x00 NUL")


def _environment(ctx: Context) -> dict[str, Any]:
    return {
        "names": sorted(name for name in os.environ if name.startswith("WORKERD_")),
        "environ": b"WORKERD_" in Path("/proc/self/environ").read_bytes(),
    }


BEHAVIOURS = {
    name.removeprefix("_"): value
    for name, value in list(globals().items())
    if callable(value) and name[0] == "_"
}
