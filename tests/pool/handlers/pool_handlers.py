"""Well- and ill-behaved handlers for the tests of the pool; they signal by files in a folder."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from workerd.handler import Cancelled, Context, DeadlineExceeded, Failure, Retry
from workerd.pool.shared import SharedFlags


def noop() -> None:
    pass


def echo(value: object = None) -> object:
    return value


def pid() -> int:
    return os.getpid()


def mark(folder: str, name: str) -> int:
    """Create the file `name` with the pid of this process, atomically."""
    target = Path(folder, name)
    part = target.with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(target)
    return os.getpid()


def wait_for(folder: str, name: str) -> None:
    while not Path(folder, name).exists():
        time.sleep(0.005)


def gate(folder: str, sign: str = "gate") -> str:
    """Creates the file `sign` when it starts, and returns when the file `go` exists."""
    mark(folder, sign)
    wait_for(folder, "go")
    return sign


def burns(seconds: float) -> None:
    """Use so much CPU time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def standing() -> dict[str, int]:
    """How the kernel treats this process and its children."""
    child = subprocess.run(["nice"], capture_output=True, check=True).stdout
    score = Path("/proc/self/oom_score_adj").read_text()
    return {"niceness": os.nice(0), "child": int(child), "score": int(score)}


def nap(seconds: float) -> None:
    time.sleep(seconds)


def progresses(ctx: Context, folder: str) -> None:
    ctx.progress(0.25, "a quarter")
    wait_for(folder, "go")


def stopping(ctx: Context, folder: str) -> str:
    mark(folder, "began")
    while not ctx.stopping:
        time.sleep(0.005)
    return "saw it"


# -- endless, each in its own way


def python_loop() -> None:
    while True:
        pass


def looking_c() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def blind_c() -> None:
    sum(range(10**13))


def swallows() -> None:
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            continue


def waits_for_child(folder: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"]
    )
    mark_pid(folder, "child", child.pid)
    while True:
        try:
            child.wait()
        except BaseException:
            child.terminate()


def mark_pid(folder: str, name: str, number: int) -> None:
    target = Path(folder, name)
    part = target.with_suffix(".part")
    part.write_text(str(number))
    part.rename(target)


def leaves_family(folder: str, endless: bool = True) -> None:
    """Starts a plain child, one in its own session and a double-forked one; all ignore signals."""
    for name, detach in (("plain", False), ("setsid", True)):
        _offspring(folder, name, detach)
    if os.fork() == 0:
        os.setsid()
        _offspring(folder, "double", True)
        os._exit(0)
    for name in ("plain", "setsid", "double"):
        wait_for(folder, name)
    while endless:
        try:
            time.sleep(1)
        except BaseException:
            continue


def _offspring(folder: str, name: str, detach: bool) -> None:
    if os.fork() == 0:
        if detach:
            os.setsid()
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        mark(folder, name)
        while True:
            time.sleep(60)


def heeds_deadline(ctx: Context) -> str:
    try:
        while True:
            time.sleep(0.005)
    except DeadlineExceeded:
        return f"tidied up with {ctx.remaining():.0f} s left"


def blocks_soft_signal() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(1)


def default_soft_signal() -> None:
    signal.signal(signal.SIGRTMIN + 1, signal.SIG_DFL)
    while True:
        time.sleep(1)


def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fails_when_cancelled(folder: str, how: str) -> None:
    mark(folder, "began")
    try:
        while True:
            time.sleep(0.005)
    except Cancelled:
        if how == "dies":
            os._exit(4)
        raise ValueError("not like this") from None


# -- dying


def segfault() -> None:
    ctypes.string_at(0)


def exits(code: int) -> None:
    os._exit(code)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_with_child(folder: str) -> None:
    """Dies and leaves a forked child that keeps every descriptor open."""
    _offspring(folder, "child", True)
    wait_for(folder, "child")
    os._exit(3)


def crashes_if_first(folder: str) -> str:
    if not Path(folder, "crashed").exists():
        mark(folder, "crashed")
        os.kill(os.getpid(), signal.SIGSEGV)
    return "second time lucky"


def closes_channel() -> None:
    for fd in range(3, 2000):
        with contextlib.suppress(OSError):
            os.close(fd)
    time.sleep(60)


# -- bad manners


def prints(size: int, text: str = "x") -> int:
    line = text * 1000 + "\n"
    for _ in range(size // len(line)):
        sys.stdout.write(line)
    return size


def prints_text(text: str) -> None:
    print(text, end="", flush=True)


def closes_fds() -> None:
    os.closerange(0, 101)


def forks() -> int:
    child = os.fork()
    if child == 0:
        return -1  # and continues in the worker's code
    return child


def threads() -> int:
    threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
    return threading.active_count()


def chdir() -> str:
    before = os.getcwd()
    os.chdir("/tmp")
    return before


def signals() -> bool:
    """Whether the signal handlers of the last job are gone; installs new ones."""
    clean = signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMIN + 1, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_IGN)
    return clean


def raises(kind: str) -> None:
    raise {
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "value": ValueError("no"),
        "failure": Failure("never again"),
        "retry": Retry("later", after=7),
        "snooze": Retry("not yet", after=7, counted=False),
        "hold": Retry("429", after=7, hold="limit"),
        "str": UnprintableError(),
    }[kind]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def unencodable() -> object:
    return object()


def hoards(mebibytes: int) -> None:
    kept = bytearray(mebibytes << 20)
    for offset in range(0, len(kept), 4096):
        kept[offset] = 1
    while True:
        time.sleep(0.01)


KEPT: list[bytes] = []


def grows(mebibytes: int) -> int:
    KEPT.append(os.urandom(1 << 20) * mebibytes)
    return os.getpid()


def denies(how: str, folder: str) -> None:
    """Writes to the flags that it shares with the pool, then dies."""
    with open(Path(folder, "deaths"), "a") as deaths:
        deaths.write("one\n")
    for flags in [found for found in gc.get_objects() if isinstance(found, SharedFlags)]:
        with contextlib.suppress(ValueError):  # of an earlier worker
            flags.mark_started(0 if how == "unmarks" else flags.started + 1)
    os.kill(os.getpid(), signal.SIGKILL)
