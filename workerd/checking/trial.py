"""Loading every handler for a trial, each in a process of its own, which cannot harm the one who asks."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from workerd.config.model import Config, Handler, Pool
from workerd.config.units import duration_text
from workerd.errors import LoadError
from workerd.pool.loading import load
from workerd.process.child import Child, fork

AT_ONCE = 4
"""Trials that run side by side; an import may take hundreds of megabytes."""
ANSWER_LIMIT = 16 * 1024
"""Bytes of one answer; less than a pipe holds, so that nobody waits to write it."""


def faults(config: Config) -> dict[str, str]:
    """For every handler of the configuration: why it does not load, "" if it does."""
    waiting = [(pool, handler) for pool in config.pools.values() for handler in pool.handlers]
    found: dict[str, str] = {handler.name: "" for _, handler in waiting}
    running: list[Trial] = []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(Trial.begin(*waiting.pop(0)))
        _wait(running)
        for trial in [t for t in running if t.over()]:
            found[trial.handler.name] = trial.answer()
            running.remove(trial)
    return found


def _wait(trials: Iterable[Trial]) -> None:
    """Until one of the processes has ended or its time is over."""
    with selectors.DefaultSelector() as selector:
        for trial in trials:
            selector.register(trial.child.pidfd, selectors.EVENT_READ)
        ends = min(trial.ends for trial in trials)
        selector.select(max(0.0, ends - time.monotonic()))


@dataclass
class Trial:
    """One handler being loaded; `ends`: monotonic seconds at which it is killed."""

    handler: Handler
    child: Child
    reader: int
    ends: float
    limit: float

    @classmethod
    def begin(cls, pool: Pool, handler: Handler) -> Trial:
        """Fork the process that loads it."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        child = fork(_loading(msgspec.structs.replace(pool, handlers=(handler,)), writer), keep=(writer,))
        os.close(writer)
        return cls(handler, child, reader, time.monotonic() + pool.load_timeout, pool.load_timeout)

    def over(self) -> bool:
        """Whether it has ended, by itself or now by force."""
        if self.child.reap() is not None:
            return True
        return time.monotonic() >= self.ends

    def answer(self) -> str:
        """What came out; what it left running is killed."""
        ended = self.child.status is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.kill()
        if not ended:
            os.waitid(os.P_PIDFD, self.child.pidfd, os.WEXITED | os.WNOWAIT)
            self.child.reap()
        self.child.close()
        try:
            said = os.read(self.reader, ANSWER_LIMIT + 1)
        except BlockingIOError:
            said = b""
        os.close(self.reader)
        if said[:1] == b"+":
            return ""
        if said:
            prefix = f'handler "{self.handler.name}" (call = "{self.handler.call}"): '
            return said[1:].decode("utf-8", "replace").removeprefix(prefix)
        if not ended:
            return (
                f"loading it took longer than {duration_text(self.limit)}; make the import quicker "
                "or set load_timeout higher"
            )
        return f"its import ended the process with {_status_text(self.child.status)}"


def _status_text(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"


def _loading(pool: Pool, writer: int) -> Callable[[], int]:
    def main() -> int:
        # Its own group, so that what an import starts can be killed with it.
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        for name in [name for name in os.environ if name.startswith("WORKERD_")]:
            del os.environ[name]
        try:
            load(pool)
            said = "+"
        except LoadError as error:
            said = f"-{error}"
        except BaseException as error:
            said = f"-its import ended with {type(error).__name__}: {error}"
        os.write(writer, said.encode("utf-8", "replace")[:ANSWER_LIMIT])
        return 0

    return main
