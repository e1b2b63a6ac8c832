"""Handlers for the executor and a single worker: every kind of result, exception and side effect."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import fcntl
import io
import locale
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workerd import handler
from workerd.handler import Cancelled, Context, DeadlineExceeded, Failure, Result, Retry

seen: list[str] = []
"""Events in this worker, across its jobs."""


# -- returning


def nothing() -> None:
    """Do nothing."""


def echo(**vars: Any) -> Any:
    return vars


def add(a: int, b: int = 1) -> int:
    return a + b


def about(ctx: Context) -> dict[str, Any]:
    return {"job": ctx.job_id, "token": ctx.token, "remaining": ctx.remaining() < 1e9, "meta": ctx.meta}


def raw(kind: str) -> Any:
    return {"bytes": b"\x00\xff", "bytearray": bytearray(b"ab"), "memoryview": memoryview(b"cd")}[kind]


def large(size: int) -> bytes:
    return bytes(size)


def unfit(kind: str) -> Any:
    loop: list[Any] = []
    loop.append(loop)
    released = memoryview(b"x")
    released.release()
    return {
        "object": object(),
        "generator": (n for n in range(3)),
        "loop": loop,
        "surrogate": "\ud800",
        "nan": {"a": [float("nan")]},
        "released": released,
        "extras": Result(extras=[1]),
        "spawn": Result(spawn={"a": 1}),
    }[kind]


def result(success: bool) -> Result:
    return Result(success, {"n": 1}, {"found": 3}, [{"name": "x", "handler": "y"}])


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x


def generator() -> Iterator[int]:
    yield 1


# -- saving


def saves(ctx: Context, value: int) -> str:
    ctx.save(value)
    return "saved"


def leaves_a_save(ctx: Context) -> str:
    """Return while a thread waits for what it saved to be committed."""

    def save() -> None:
        try:
            ctx.save(1, wait=True)
        except RuntimeError as error:
            seen.append(str(error))

    threading.Thread(target=save, daemon=True).start()
    while not ctx.stopping:
        time.sleep(0.001)
    return "left"


# -- raising


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class StrExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


def fails(kind: str) -> None:
    raise {
        "value": ValueError("line one\nline two"),
        "failure": Failure("no such image"),
        "retry": Retry("busy", after=5),
        "snooze": Retry("not yet", after="1m", counted=False),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "str raises": StrRaises(),
        "str exits": StrExits(),
        "long": ValueError("é" * 70_000),
        "surrogate": ValueError("a\ud800b\0c"),
        "group": ExceptionGroup("two", [ValueError(1), KeyError(2)]),
        "own deadline": DeadlineExceeded("by itself"),
        "own cancel": Cancelled("by itself"),
    }[kind]


def recurses(n: int = 0) -> int:
    return recurses(n + 1) + 1


# -- long-running


def spins() -> None:
    while True:
        pass


def sleeps() -> None:
    time.sleep(60)


def backtracks() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def holds() -> int:
    return sum(range(10**13))


def swallows_once(path: str) -> str:
    try:
        time.sleep(60)
    except BaseException:
        Path(path).touch()
    time.sleep(60)
    return "never"


def cleans_up(ctx: Context) -> str:
    """Clean up for longer than the interval between two soft signals."""
    try:
        print("begun", flush=True)
        time.sleep(60)
    except DeadlineExceeded:
        ctx.progress(note="cleaning")
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            pass
        ctx.progress(note="cleaned")
        raise
    return "never"


def answers_anyway() -> str:
    try:
        time.sleep(60)
    except DeadlineExceeded:
        return "partial result"
    return "never"


def translates() -> None:
    try:
        time.sleep(60)
    except BaseException as error:
        raise RuntimeError("the library failed") from error


def puts_off() -> None:
    try:
        time.sleep(60)
    except DeadlineExceeded:
        raise Retry("later", after=9) from None


async def sleeps_async() -> None:
    await asyncio.sleep(60)


async def cleans_up_async(ctx: Context) -> str:
    """Await again during cleanup."""
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        try:
            print("begun", flush=True)
            await asyncio.sleep(60)
        except DeadlineExceeded:
            ctx.progress(note="cleaning")
            await asyncio.sleep(0.2)
            ctx.progress(note="cleaned")
            raise
    return "never"


async def spins_async() -> None:
    """Never yield to the event loop."""
    while True:
        pass


def stops(ctx: Context) -> str:
    ctx.progress(note="started")
    while not ctx.stopping:
        time.sleep(0.001)
    return "stopped"


# -- output and progress


def prints(text: str) -> None:
    print("to stderr", file=sys.stderr)
    print(text, end="")


def prints_what_is_no_text() -> None:
    print("\udcff and é")


def logs(ctx: Context) -> None:
    ctx.log.warning("slow image", width=200, name="a b")


def progresses(ctx: Context) -> None:
    for n in range(10_000):
        ctx.progress(n / 10_000, f"at {n}\n")


def leaves_a_thread(ctx: Context) -> None:
    def talk() -> None:
        for n in range(200):
            ctx.progress(0.1, f"late {n}")
            time.sleep(0.001)

    threading.Thread(target=talk).start()


# -- changing its process


def wrecks(what: str) -> None:
    match what:
        case "folder":
            folder = tempfile.mkdtemp()
            os.chdir(folder)
            os.rmdir(folder)
        case "descriptors":
            os.closerange(0, 101)
        case "signals":
            for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(signum, signal.SIG_IGN)
        case "mask":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        case "timer":
            signal.signal(signal.SIGALRM, lambda *_: seen.append("alarm"))
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        case "streams":
            sys.stdout.close()
            sys.stderr = sys.stdin = io.StringIO()
        case "detach":
            sys.stdout.detach()
        case "redirect":
            with tempfile.TemporaryFile() as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
        case _:
            _wreck_setting(what)


def _wreck_setting(what: str) -> None:
    match what:
        case "environment":
            os.environ["WRECKED"] = "yes"
            os.environ.pop("PATH", None)
        case "replaced environment":
            os.environ = {}  # type: ignore[assignment]  # noqa: B003
        case "zone":
            os.environ["TZ"] = "Asia/Kathmandu"
            time.tzset()
            del os.environ["TZ"]
        case "umask":
            os.umask(0o777)
        case "niceness":
            os.nice(3)
        case "locale":
            locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")
        case "limits":
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
            resource.prlimit(0, resource.RLIMIT_NOFILE, (700, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        case "timeout":
            socket.setdefaulttimeout(3.0)


def state() -> dict[str, Any]:
    """Return the process state that the worker must reset between jobs."""
    default = signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    return {
        "folder": os.getcwd(),
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "default": default and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL,
        "timer": signal.getitimer(signal.ITIMER_REAL)[0],
        "stdin": os.path.samefile("/dev/fd/0", os.devnull),
        "pipes": [os.path.exists(f"/dev/fd/{fd}") and os.fstat(fd).st_ino for fd in (1, 2)],
        "low": sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if 2 < fd < 500),
        "inheritable": [
            fd for fd in map(int, os.listdir("/proc/self/fd")) if fd >= 500 and not _closes_on_exec(fd)
        ],
        "environment": dict(os.environ),
        "path": subprocess.run(["/bin/sh", "-c", "echo $PATH $WRECKED"], capture_output=True).stdout.decode(),
        "zone": time.tzname,
        "umask": _umask(),
        "niceness": os.nice(0),
        "locale": locale.setlocale(locale.LC_ALL),
        "limits": [resource.getrlimit(limit) for limit in range(10)],
        "timeout": socket.getdefaulttimeout(),
        "leader": os.getsid(0) == os.getpid() == os.getpgrp(),
        "title": Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode(),
    }


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def lowers_a_hard_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def registers_at_exit(path: str, seconds: float = 0.0) -> None:
    """Register a function that writes a file when the worker exits, after so many seconds."""

    def at_exit() -> None:
        time.sleep(seconds)
        print("leaving")
        Path(path).touch()

    atexit.register(at_exit)


def _closes_on_exec(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


def forks_and_returns() -> str:
    """Fork; both processes return from the handler."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return "parent"
    return "child"


def forks_and_waits(ctx: Context) -> str:
    """Fork; the child reports progress that must be dropped."""
    pid = os.fork()
    if not pid:
        ctx.progress(0.9, "from the child")
        os._exit(0)
    os.waitpid(pid, 0)
    return "parent"


def terminates(how: str) -> int | None:
    """Terminate a child with SIGTERM, as libraries do."""
    if how == "subprocess":
        with subprocess.Popen(["sleep", "60"]) as child:
            child.terminate()
            return child.wait(20)
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(20)
    return process.exitcode


def leaves_a_child() -> int:
    """Leave a child that keeps every inherited descriptor open."""
    pid = os.fork()
    if not pid:
        os.setsid()
        time.sleep(60)  # longer than any test waits for its end; a worker without a pool does not kill it
        os._exit(0)
    return pid


def daemonizes() -> int:
    """Leave a double-forked grandchild in its own session."""
    reading, writing = os.pipe()
    if not os.fork():
        if not os.fork():
            os.setsid()
            os.write(writing, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    return int(os.read(reading, 20))


def leaves_a_child_and_dies() -> None:
    leaves_a_child()
    os._exit(3)


def leaves_many_and_fails(count: int) -> None:
    """Leave children in the background, and say which in the error."""
    children = [subprocess.Popen(["sleep", "600"]).pid for _ in range(count)]
    raise ValueError(" ".join(map(str, children)))


helpers: list[subprocess.Popen[bytes]] = []


def start_helper() -> None:
    """For `init`: a process for all jobs, and one that is detached and ends while the worker is idle."""
    helpers.append(subprocess.Popen(["sh", "-c", "(sleep 0.3 &); sleep 600"], stdout=subprocess.PIPE))


def helper_lives() -> bool:
    return helpers[0].poll() is None


def starts_what_fails() -> None:
    """Start a process that ends with status 3, and do not wait for it."""
    helpers.append(subprocess.Popen(["sh", "-c", "exit 3"]))
    while "\nState:\tZ" not in Path(f"/proc/{helpers[-1].pid}/status").read_text():
        time.sleep(0.001)


def waits_for_what_failed() -> int:
    return helpers[-1].wait()


def uses(kib: int, burn: float, child: bool) -> None:
    data = bytearray(kib * 1024)
    for place in range(0, len(data), 4096):
        data[place] = 1
    if child:
        subprocess.run(
            [
                sys.executable,
                "-c",
                f"x = bytearray({kib} * 1024)\nwhile __import__('time').process_time() < {burn}: pass",
            ],
            check=True,
        )
    else:
        end = time.process_time() + burn
        while time.process_time() < end:
            pass


# -- dying


def dies(how: str) -> None:
    match how:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            ctypes.string_at(0)


# -- classes


class Recurring:
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.runs = 0

    def ensure(self, ctx: Context) -> dict[str, int]:
        self.runs += 1
        return {"made": self.made, "runs": self.runs, "attempt": ctx.attempt}

    def cooler(self) -> float:
        return 2.5


class Idle:
    def active(self) -> bool:
        return False

    def ensure(self) -> None:
        raise AssertionError("never called")


@handler(max_attempts=2)
class Moody:
    """`active()` and `cooler()` fail or return invalid values on request."""

    def __init__(self) -> None:
        self.mood = ""

    def active(self) -> bool:
        if self.mood == "inactive":
            raise LookupError("no mood")
        return True

    def ensure(self, mood: str) -> str:
        self.mood = mood
        return mood

    def cooler(self) -> Any:
        return {"text": "5s"}.get(self.mood, "soon")


class Broken:
    def __init__(self) -> None:
        raise OSError("no instance today")

    def ensure(self) -> None: ...


def init() -> None:
    seen.append("init")
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def bad_init() -> None:
    raise OSError("no database here")


def get_seen() -> list[str]:
    return seen


def keeps_sigusr2_ignored() -> bool:
    return signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


@handler(deadline=30, ignore=[KeyError], retry_on=["OSError", "json.JSONDecodeError"], backoff={"first": 3})
def decorated(x: int) -> int:
    return x


def closes_pipes() -> str:
    """Close every pipe of its worker except the standard streams."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if fd > 2 and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                os.close(fd)
    return "closed"


# -- setup and around

steps: list[str] = []


def set_up() -> None:
    steps.append("setup")


def fails_to_set_up() -> None:
    raise RuntimeError("no settings")


def around(ctx: Context) -> Iterator[None]:
    steps.append("in")
    try:
        yield
    finally:
        steps.append("out")


def around_it(ctx: Context, call_next: Callable[[], Any]) -> Any:
    steps.append("call")
    return call_next()


def around_and_slow(ctx: Context) -> Iterator[None]:
    yield
    while True:
        time.sleep(0.01)


def get_steps() -> list[str]:
    return steps


def drop_privileges() -> None:
    """For `init`: no longer be root, who may raise hard limits."""
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 65534)
