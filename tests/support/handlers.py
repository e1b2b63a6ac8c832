"""One handler with many faces, for tests of the whole: what it does is said by its argument."""

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
    """An exception that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Ignored(Exception):
    """Listed in `ignore` by the tests' configuration."""


def noop() -> None:
    """Nothing, as fast as it can."""


def add(a: int, b: int = 1) -> int:
    """Converts and checks its arguments."""
    return a + b


def echo(**given: Any) -> dict[str, Any]:
    """Whatever it was given."""
    return given


def record(ctx: Context, path: str, wait: float = 0.0) -> int:
    """Writes a line for each run that began, outside of workerd: how often a job really ran."""
    line = f"{ctx.job_id} {ctx.attempt}\n".encode()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
    if wait:
        time.sleep(wait)
    return ctx.attempt


def wait_for_file(ctx: Context, path: str, limit: float = 60.0) -> str:
    """Runs until a file exists, so that a test decides when it ends."""
    end = time.monotonic() + limit
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.005)
    return "seen"


def bulk_when_told(ctx: Context, path: str, size: int) -> bytes:
    """Returns so many bytes when the file exists."""
    wait_for_file(ctx, path)
    return b"x" * size


def until_stopping(ctx: Context, path: str, limit: float = 60.0) -> bool:
    """Runs until ctx.stopping is set, which it writes down, and then ends by itself."""
    record(ctx, f"{path}.began")
    end = time.monotonic() + limit
    while not ctx.stopping and time.monotonic() < end:
        time.sleep(0.005)
    record(ctx, path)
    return ctx.stopping


def leaves_children(ctx: Context, path: str) -> None:
    """Starts a child, one in a session of its own and one forked twice, writes their pids, and waits."""
    plain = subprocess.Popen(["sleep", "600"])
    apart = subprocess.Popen(["sleep", "600"], start_new_session=True)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(writer, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    twice = int(os.read(reader, 32))
    Path(f"{path}.new").write_text(f"{os.getpid()} {plain.pid} {apart.pid} {twice}")
    Path(f"{path}.new").rename(path)
    time.sleep(600)


def faces(ctx: Context, face: str, **more: Any) -> Any:
    """Does what `face` names."""
    return FACES[face](ctx, **more)


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


def _leaves_its_mark(ctx: Context) -> str:
    os.chdir("/tmp")
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(signum, lambda *a: None)
    signal.alarm(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    os.close(1)
    return "marked"


def _shows_its_state(ctx: Context) -> dict[str, Any]:
    return {
        "cwd": os.getcwd(),
        "sigterm": str(signal.getsignal(signal.SIGTERM)),
        "blocked": sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "stdout": os.fstat(1).st_mode,
    }


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


FACES = {
    name.removeprefix("_"): value
    for name, value in list(globals().items())
    if callable(value) and name[0] == "_"
}
