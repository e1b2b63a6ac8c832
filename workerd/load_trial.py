"""Whether each handler of a configuration loads, tried in a process of its own."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.model import Config
from workerd.config.quantities import duration_literal
from workerd.errors import LoadError
from workerd.pool.loading import described, load
from workerd.runtime.child import Child, fork
from workerd.runtime.descriptors import named
from workerd.text import death_text

MAX_PROBES = 4
"""Handlers that are loaded at the same time; an import may take hundreds of megabytes."""
MAX_ANSWER_BYTES = 16 * 1024
"""Less than a pipe holds, so that writing an answer never blocks."""


class LoadTrial(msgspec.Struct, frozen=True):
    """How loading one handler went; `error`: why it does not load, "" if it does.

    `sockets`, `files`: what importing it left open. `has_cooler`: whether it is a class with `cooler()`.
    """

    error: str = ""
    sockets: list[str] = []
    files: list[str] = []
    has_cooler: bool = False


def load_all(config: Config) -> dict[str, LoadTrial]:
    """Load every handler of the configuration, each in a process of its own."""
    waiting = [(pool, handler) for pool in config.pools.values() for handler in pool.handlers]
    trials: dict[str, LoadTrial] = {}
    running: list[LoadProbe] = []
    try:
        while waiting or running:
            while waiting and len(running) < MAX_PROBES:
                running.append(LoadProbe.start(*waiting.pop(0)))
            _wait(running)
            for probe in [probe for probe in running if probe.is_over()]:
                trials[probe.handler.name] = probe.finish()
                running.remove(probe)
    finally:
        for probe in running:  # Ctrl-C
            probe.finish()
    return trials


def _wait(probes: Iterable[LoadProbe]) -> None:
    """Return when one of the processes has ended or reached its deadline."""
    with selectors.DefaultSelector() as selector:
        for probe in probes:
            selector.register(probe.child.pidfd, selectors.EVENT_READ)
        deadline = min(probe.deadline for probe in probes)
        selector.select(max(0.0, deadline - time.monotonic()))


@dataclass
class LoadProbe:
    """A process that loads one handler; `reader`: the pipe that it answers on; `deadline`: monotonic."""

    handler: HandlerConfig
    child: Child
    reader: int
    deadline: float
    timeout: float

    @classmethod
    def start(cls, pool: PoolConfig, handler: HandlerConfig) -> LoadProbe:
        """Fork the process."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        alone = msgspec.structs.replace(pool, handlers=(handler,))
        child = fork(lambda: _load(alone, writer), keep=(writer,))
        os.close(writer)
        return cls(handler, child, reader, time.monotonic() + pool.load_timeout, pool.load_timeout)

    def is_over(self) -> bool:
        """Whether it has ended or reached its deadline."""
        return self.child.reap() is not None or time.monotonic() >= self.deadline

    def finish(self) -> LoadTrial:
        """Kill what is left of it and return how loading went."""
        timed_out = self.child.status is None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.kill()
        if timed_out:
            os.waitid(os.P_PIDFD, self.child.pidfd, os.WEXITED | os.WNOWAIT)
            self.child.reap()
        self.child.close()
        try:
            answer = os.read(self.reader, MAX_ANSWER_BYTES + 1)
        except BlockingIOError:
            answer = b""
        os.close(self.reader)
        told = answer[1:].decode("utf-8", "replace")
        if answer[:1] == b"+":
            return _trial(told)
        if answer:
            return LoadTrial(told.removeprefix(f"{described(self.handler)}: "))
        if timed_out:
            return LoadTrial(
                f"loading took longer than {duration_literal(self.timeout)}; make the import faster, "
                "or raise load_timeout"
            )
        return LoadTrial(f"the process that imported it {death_text(self.child.status or 0)}")


def _trial(told: str) -> LoadTrial:
    try:
        return msgspec.json.decode(told, type=LoadTrial)
    except msgspec.DecodeError:  # more than the answer holds
        return LoadTrial()


def _load(pool: PoolConfig, writer: int) -> int:
    """In the child: load the handler; write `+` and what that left open, or `-` and the error."""
    # A process group of its own, so that what an import starts is killed with it.
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
    for name in [name for name in os.environ if name.startswith("WORKERD_")]:
        del os.environ[name]
    try:
        loaded = load(pool)
        opened = loaded.descriptors
        sockets, files = named(opened, shareable=False), named(opened, shareable=True)
        has_cooler = any(spec.has_cooler for spec in loaded.specs)
        trial = LoadTrial(sockets=sockets, files=files, has_cooler=has_cooler)
        answer = "+" + msgspec.json.encode(trial).decode()
    except LoadError as error:
        answer = f"-{error}"
    except BaseException as error:
        answer = f"-its import ended with {type(error).__name__}: {error}"
    os.write(writer, answer.encode("utf-8", "replace")[:MAX_ANSWER_BYTES])
    return 0
