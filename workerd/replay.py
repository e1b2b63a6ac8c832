"""Runs one attempt once more in a child of this process, beside the daemon; nothing reaches the store.

The child prepares and runs as a worker does; the parent relays its output, keeps the limits and ends what it
started. Under the debugger the child has the terminal, and stays in the terminal's process group.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import math
import os
import pdb  # noqa: T100 -- it is what --pdb asks for
import selectors
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from workerd.config.handler_config import PoolConfig
from workerd.config.model import Config
from workerd.config.quantities import duration_literal
from workerd.errors import LoadError
from workerd.handler import Context
from workerd.job import Claim
from workerd.messages import Traced
from workerd.outcome import Outcome, RunResult
from workerd.pool.attempt import AssignedAttempt, KillReason, handler_frames, result_of_death
from workerd.pool.executor import Executor
from workerd.pool.handler_log import StandardErrorLog
from workerd.pool.isolation import forget_exit_functions, run_exit_functions
from workerd.pool.loading import load
from workerd.pool.policies import Policies
from workerd.pool.scrubbing import scrubbed_note, scrubber_of_claim, scrubber_of_results
from workerd.pool.shared import DUMP_SIGNAL, SOFT_SIGNAL, SharedFlags
from workerd.pool.worker_limits import Meter
from workerd.pool.worker_messages import Assignment, HandlerSpec, Progressed
from workerd.redaction import NOTHING, Redaction
from workerd.runtime.child import Child, become_subreaper, children_of, descendants_of, fork
from workerd.runtime.limits import limit_data, resident_bytes
from workerd.runtime.stackdump import StackDump
from workerd.text import death_text

SIGNAL_INTERVAL_S = 0.1
"""Between two soft signals, and two looks at the memory."""
DUMP_TIMEOUT_S = 0.1
"""For a run that is about to be killed to print its stacks."""
EXIT_TIMEOUT_S = 5.0
"""For what user code registered to run at exit."""
MAX_LINE_BYTES = 1 << 20
"""Of a line that is not held back until its end."""
_READ_BYTES = 64 * 1024
_SIZE = struct.Struct(">Q")


@dataclass(frozen=True)
class Options:
    """`debug`: stop in the debugger where the run raises. `limits`: keep deadlines and `memory_max`.

    `redaction`: of the store's rules, beside the handler's own; `reveal`: neither is applied.
    """

    redaction: Redaction = NOTHING
    debug: bool = False
    limits: bool = False
    reveal: bool = False


@dataclass(frozen=True)
class Replayed:
    """How it ended, with what of it is not to be shown."""

    outcome: Outcome
    redaction: Redaction


class CannotRun(LoadError):
    """The run did not begin."""


class FromChild(msgspec.Struct):
    """`ready`: it is loaded, with its specification and the redacted paths; `started`; `debugging`: a person
    has the terminal; `refused`: it cannot run; `ended`: the result, and what the run saved.
    """

    kind: str
    error: str = ""
    spec: HandlerSpec | None = None
    paths: tuple[str, ...] = ()
    result: RunResult | None = None
    state: bytes | None = None


def run(config: Config, claim: Claim, options: Options, write: Callable[[bytes], None]) -> Replayed:
    """Run the claim, whose handler the configuration has; `write` gets what it prints.

    Raises CannotRun where it cannot be loaded. However this ends, nothing that it started is left.
    """
    before = set(children_of(os.getpid()))
    become_subreaper()
    flags = SharedFlags()
    messages, telling = os.pipe()
    reading, writing = os.pipe()
    dump = StackDump()
    child = _Child(config, claim, options, flags, telling, writing, dump.fd)
    process = None
    try:
        process = fork(child.main, keep=(telling, writing, dump.fd))
        os.close(telling)
        os.close(writing)
        return _Watch(config, claim, options, messages, reading, dump, process, write).until_end()
    finally:
        if process is not None:
            _end(process, before, alone=not options.debug)
        os.close(messages)
        os.close(reading)
        dump.close()
        flags.close()


def _pool_of(config: Config, handler: str) -> PoolConfig:
    """The handler's pool with only this handler: others that fail to load must not matter."""
    own = config.handlers[handler]
    pool = next(pool for pool in config.pools.values() if own in pool.handlers)
    return msgspec.structs.replace(pool, handlers=(own,))


def _end(process: Child, before: set[int], *, alone: bool) -> None:
    """Kill the child and everything that it started, and reap what has become ours."""
    started = descendants_of(process.pid)
    if alone and process.status is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    _kill(started)
    if process.status is None:
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
        process.reap()
    process.close()
    while left := set(children_of(os.getpid())) - before:
        for pid in left:
            _kill([pid, *descendants_of(pid)])
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


# -- the parent's side


class _Watch:
    """Reads what the child says and prints, and keeps its limits."""

    def __init__(
        self,
        config: Config,
        claim: Claim,
        options: Options,
        channel: int,
        output: int,
        dump: StackDump,
        process: Child,
        write: Callable[[bytes], None],
    ) -> None:
        self._claim = claim
        self._options = options
        self._dump = dump
        self._process = process
        self._write = write
        self._pool = _pool_of(config, claim.handler)
        self._policies = Policies(config, self._pool)
        self._received = bytearray()
        self._printed = b""
        self._redaction = NOTHING if options.reveal else options.redaction
        paths = self._redaction.paths
        self._scrubber = scrubber_of_claim(self._redaction, claim) if paths else None
        self._attempt: AssignedAttempt | None = None
        self._ended: FromChild | None = None
        self._kill_reason = KillReason.NONE
        self._debugging = False
        self._until = math.inf if options.debug else time.monotonic() + self._pool.load_timeout
        self._sources = {channel: self._receive, output: self._print}
        for fd in self._sources:
            os.set_blocking(fd, False)

    def until_end(self) -> Replayed:
        """Return when it has ended. Raises CannotRun."""
        while self._process.reap() is None and not self._is_over():
            with selectors.DefaultSelector() as selector:
                for fd in (*self._sources, self._process.pidfd):
                    selector.register(fd, selectors.EVENT_READ)
                selector.select(self._pause())
            self._read()
            self._keep_limits()
        self._drain()
        self._write_printed(b"", last=True)
        return self._replayed()

    def _is_over(self) -> bool:
        """Whether its functions at exit have taken too long."""
        return self._ended is not None and time.monotonic() > self._until

    def _pause(self) -> float | None:
        if self._until < math.inf:
            return max(0.0, self._until - time.monotonic())
        return SIGNAL_INTERVAL_S if self._options.limits and self._attempt is not None else None

    def _read(self) -> None:
        """Read from each once: what prints without end must not keep its limits from it.

        Messages first: what is printed after one may have to be redacted by it.
        """
        for fd, take in list(self._sources.items()):
            if not self._received or take == self._receive:
                self._read_once(fd, take)

    def _read_once(self, fd: int, take: Callable[[bytes], None], limit: int = _READ_BYTES) -> int:
        """Returns the number of bytes that were there."""
        try:
            data = os.read(fd, limit)
        except BlockingIOError:
            return 0
        if data:
            take(data)
        else:
            del self._sources[fd]
        return len(data)

    def _drain(self) -> None:
        """Read what is in the pipes now: what the run has left behind may print without end, too."""
        for fd, take in list(self._sources.items()):
            left = _bytes_in(fd)
            while left and (count := self._read_once(fd, take, min(left, _READ_BYTES))):
                left -= count

    # -- what it says

    def _receive(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= _SIZE.size:
            (size,) = _SIZE.unpack_from(self._received)
            end = _SIZE.size + size
            if len(self._received) < end:
                return
            message = bytes(self._received[_SIZE.size : end])
            del self._received[:end]
            self._on_message(msgspec.msgpack.decode(message, type=FromChild))

    def _on_message(self, message: FromChild) -> None:
        if message.kind == "ready" and message.spec is not None:
            self._policies.learn([message.spec])
            self._redaction = Redaction(message.paths)
            self._scrubber = scrubber_of_claim(self._redaction, self._claim) if message.paths else None
        elif message.kind == "started":
            self._until = math.inf
            policy = self._policies.of(self._claim)
            self._attempt = AssignedAttempt(1, self._claim, policy, time.monotonic_ns())
        elif message.kind == "debugging":
            self._debugging = True
        else:
            self._ended = message
            self._until = time.monotonic() + EXIT_TIMEOUT_S

    # -- what it prints

    def _print(self, data: bytes) -> None:
        self._write_printed(data, last=False)

    def _write_printed(self, data: bytes, *, last: bool) -> None:
        """Write whole lines: a value that is not shown may come in two parts."""
        self._printed += data
        end = len(self._printed) if last else self._printed.rfind(b"\n") + 1
        if not end and len(self._printed) > MAX_LINE_BYTES:
            end = len(self._printed)
        text, self._printed = self._printed[:end], self._printed[end:]
        if text:
            self._write(text if self._scrubber is None else self._scrubber.in_bytes(text)[0])

    # -- its limits

    def _keep_limits(self) -> None:
        now = time.monotonic()
        if self._attempt is None:
            if now > self._until:
                limit = duration_literal(self._pool.load_timeout)
                raise CannotRun(f"Loading took longer than load_timeout, {limit}; nothing was run.")
        elif self._options.limits and not self._debugging and self._ended is None:
            self._keep_memory(self._attempt)
            self._keep_deadline(self._attempt, now)

    def _keep_memory(self, attempt: AssignedAttempt) -> None:
        pids = [self._process.pid, *descendants_of(self._process.pid)]
        programs = self._pool.handlers[0].command is not None
        size = sum(map(resident_bytes, pids if programs else pids[:1]))
        attempt.peak_kib = max(attempt.peak_kib or 0, size // 1024)
        if 0 < self._pool.memory_max < size:
            self._kill(KillReason.OOM)

    def _keep_deadline(self, attempt: AssignedAttempt, now: float) -> None:
        if attempt.deadline <= 0 or now * 1e9 < attempt.soft_deadline_ns:
            return
        if now < attempt.hard_deadline:
            self._process.kill(SOFT_SIGNAL)
        elif self._kill_reason is KillReason.NONE:
            self._dump.begin()
            self._process.kill(DUMP_SIGNAL)
            time.sleep(DUMP_TIMEOUT_S)
            self._kill(KillReason.DEADLINE)

    def _kill(self, reason: KillReason) -> None:
        self._kill_reason = reason
        self._process.kill()

    # -- how it ended

    def _replayed(self) -> Replayed:
        told, attempt = self._ended, self._attempt
        if told is not None and told.kind == "refused":
            raise CannotRun(told.error)
        status = self._process.status
        if attempt is None:
            raise CannotRun(f"The process that loads the handler {death_text(status or 0)}; nothing was run.")
        now, state = time.monotonic_ns(), None
        if told is not None and told.result is not None:
            result, state = told.result, told.state
        else:
            attempt.measure(self._process.usage, 0)
            if self._dump.size():
                attempt.stack = handler_frames(self._dump.text())
            result = result_of_death(attempt, status or 0, self._kill_reason, now, self._pool.memory_max)
        outcome = self._policies.decide(self._claim, result, state=state)
        if self._redaction:
            outcome = scrubbed_note(outcome, scrubber_of_results(self._redaction, outcome))
        return Replayed(outcome, self._redaction)


def _bytes_in(pipe: int) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(size)


# -- the child's side


class _Child:
    """Loads the handler, runs the claim, and tells the parent."""

    def __init__(
        self,
        config: Config,
        claim: Claim,
        options: Options,
        flags: SharedFlags,
        channel: int,
        output: int,
        dump: int,
    ) -> None:
        self._claim = claim
        self._options = options
        self._flags = flags
        self._channel = channel
        self._output = output
        self._dump = dump
        self._pool = _pool_of(config, claim.handler)
        self._policies = Policies(config, self._pool)
        self._max_payload = config.ingester.max_payload
        self._state: bytes | None = None

    def main(self) -> int:
        """Return the exit status."""
        forget_exit_functions()
        become_subreaper()
        if not self._options.debug:
            self._leave_terminal()
        for name in [name for name in os.environ if name.startswith("WORKERD_")]:
            del os.environ[name]
        faulthandler.enable(file=self._dump, all_threads=True)
        faulthandler.register(DUMP_SIGNAL, file=self._dump, all_threads=True)
        try:
            executor = self._prepare()
        except LoadError as error:
            self._tell(FromChild("refused", str(error)))
            return 1
        self._tell(FromChild("ended", result=self._run(executor), state=self._state))
        run_exit_functions()
        return 0

    def _leave_terminal(self) -> None:
        """A session of its own: Ctrl-C reaches the parent, which ends it with all that it started."""
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for fd, source in ((0, null), (1, self._output), (2, self._output)):
            os.dup2(source, fd)
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = (
            open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
            for fd in (1, 2)
        )

    def _prepare(self) -> Executor:
        loaded = load(self._pool)
        handler = loaded.handlers[self._claim.handler]
        self._policies.learn([handler.spec])
        shown = self._options.reveal
        redaction = (
            NOTHING if shown else Redaction((*self._options.redaction.paths, *handler.redaction.paths))
        )
        if self._options.debug and redaction:
            raise LoadError(
                "A debugger shows every value, and this handler has some that are redacted: "
                "add --reveal, which is recorded in the audit."
            )
        around = (self._debugged, *handler.around) if self._options.debug else handler.around
        handler = replace(handler, redaction=redaction, around=around)
        self._tell(FromChild("ready", spec=handler.spec, paths=redaction.paths))
        log = StandardErrorLog()
        executor = Executor({handler.name: handler}, self._flags, self, log, replay=True)
        executor.prepare(loaded.init)
        return executor

    def _run(self, executor: Executor) -> RunResult:
        deadline = 0.0
        if self._options.limits:
            attempt = AssignedAttempt(1, self._claim, self._policies.of(self._claim), time.monotonic_ns())
            deadline = attempt.deadline
            self._flags.begin(1, attempt.soft_deadline_ns)
            if self._pool.memory_max:
                limit_data(self._pool.memory_max)
        else:
            self._flags.begin(1, 0)
        signal.signal(SOFT_SIGNAL, executor.on_soft_signal)
        meter = Meter(self._flags)
        self._tell(FromChild("started"))
        meter.start()
        result = executor.run(Assignment(1, self._claim, deadline, self._max_payload))
        usage = meter.usage()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        return msgspec.structs.replace(result, usage=usage)

    def _debugged(self, ctx: Context, call_next: Callable[[], Any]) -> Any:
        try:
            return call_next()
        except BaseException as error:
            self._tell(FromChild("debugging"))
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            pdb.post_mortem(error.__traceback__)
            raise

    def _tell(self, message: FromChild) -> None:
        data = msgspec.msgpack.encode(message)
        rest = memoryview(_SIZE.pack(len(data)) + data)
        while rest:
            rest = rest[os.write(self._channel, rest) :]

    # -- PoolLink

    def send(self, message: Progressed | Traced) -> None:
        """The result carries the last progress."""

    def keep(self, serial: int, state: bytes, wait: bool) -> None:
        """What the run saves goes no further."""
        self._state = state
