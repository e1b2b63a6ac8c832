"""One run of a program: spawned in a process group of its own, read to its end, ended by signals."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable, Mapping
from types import FrameType, MappingProxyType
from typing import Any, Literal

import msgspec

from workerd import json_text
from workerd.config.quantities import size_literal
from workerd.errors import InvalidValue
from workerd.handler import Context, Failure, Result
from workerd.job import Claim
from workerd.pool.command import Command
from workerd.pool.isolation import copy_up
from workerd.pool.program_messages import ProgramMessages
from workerd.text import death_text

MESSAGES_FD = 3
"""The descriptor on which a program reports progress, extras and retries."""
_READ_BYTES = 64 * 1024
_MAX_DRAIN_READS = 1024
"""Reads of what is left in a pipe when the program is dead; another process may still be writing to it."""
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


EndKind = Literal["retry", "failure", "raised", "crashed", "oom"]


class ProgramEnded(Exception):
    """A program ended as it should not; `status`: its exit status, or a negative signal number.

    `kind`: what that is for the policy, as in RunResult.
    """

    def __init__(self, message: str, status: int, kind: EndKind) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Program:
    """One run of a command for one claim. `max_payload`: bytes of standard output.

    `variables`: what its environment has beside the worker's and those of the job.
    """

    def __init__(
        self,
        command: Command,
        claim: Claim,
        ctx: Context,
        argv: list[str | bytes],
        max_payload: int,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._variables = variables
        self._command = command
        self._config = command.config
        self._claim = claim
        self._ctx = ctx
        self._argv = argv
        self._max_payload = max_payload
        self._pid = 0
        self._interruption: BaseException | None = None
        self._signalled = False
        self._output = bytearray()
        self._too_much = False
        self._messages = ProgramMessages(ctx, max_payload)

    def run(self) -> Any:
        """Run it to its end and return its payload.

        Raises ProgramEnded, Retry and Failure, what interrupted it, and OSError if it cannot be started.
        """
        oom_kills = self._command.oom_kills
        killed_before = oom_kills.count()
        with contextlib.ExitStack() as open_here:
            pidfd, pipes = self._start(open_here)
            try:
                self._read_until_dead(pidfd, pipes)
            finally:
                status = self._end(pidfd)
        return self._result(status, oom_kills.count() > killed_before)

    # -- the soft signal

    def interrupt(self, frame: FrameType | None, error: BaseException) -> bool:
        """Ask the program to end if the interrupted code is that of `run`; false elsewhere."""
        while frame is not None and frame.f_code is not Program.run.__code__:
            frame = frame.f_back
        if frame is None:
            return False
        self._interruption = error
        self._terminate()
        return True

    def _terminate(self) -> None:
        """SIGTERM to its group, once for each run: a program may not expect a second one."""
        if self._pid and self._interruption is not None and not self._signalled:
            self._signalled = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGTERM)

    # -- starting

    def _start(self, open_here: contextlib.ExitStack) -> tuple[int, dict[int, Callable[[bytes], None]]]:
        """Spawn it; returns its pidfd, and what takes the bytes of each pipe."""
        if not os.access(self._command.program, os.X_OK):
            raise FileNotFoundError(errno.ENOENT, "The program no longer exists", self._command.program)
        pipes: dict[int, Callable[[bytes], None]] = {}
        writing: list[int] = []

        def pipe(take: Callable[[bytes], None]) -> int:
            reading, theirs = _pipe()
            open_here.callback(os.close, reading)
            pipes[reading] = take
            writing.append(theirs)
            return theirs

        stdin = self._stdin()
        try:
            stdout = 2 if self._config.payload == "none" else pipe(self._take_output)
            self._spawn(stdin, stdout, pipe(self._messages.take))
        finally:
            for fd in (stdin, *writing):
                os.close(fd)
        self._terminate()  # the signal may have come before its pid was known
        pidfd = os.pidfd_open(self._pid)
        open_here.callback(os.close, pidfd)
        return pidfd, pipes

    def _spawn(self, stdin: int, stdout: int, messages: int) -> None:
        executable, argv = self._command.program, self._argv
        if prefix := self._command.prefix:
            executable, argv = prefix[0], [*prefix, executable, *argv[1:]]
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if self._config.cwd else -1
        try:
            if folder >= 0:
                os.chdir(self._config.cwd)
            self._pid = os.posix_spawn(
                executable,
                argv,
                self._environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, stdout, 1),
                    (os.POSIX_SPAWN_DUP2, messages, MESSAGES_FD),
                ],
                setpgroup=0,
                setsigmask=[],
                setsigdef=_SIGNALS,
            )
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            raise Failure("The arguments and environment of the program are too long together.") from None
        finally:
            if folder >= 0:
                os.fchdir(folder)
                os.close(folder)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self._variables,
            "WORKERD_JOB_ID": self._ctx.job_id,
            "WORKERD_ATTEMPT": str(self._ctx.attempt),
            "WORKERD_TOKEN": self._ctx.token,
            **({"WORKERD_REPLAY": "1"} if self._ctx.replay else {}),
        }

    def _stdin(self) -> int:
        """A descriptor with what the program reads: a file in memory, so that nobody must feed it."""
        if self._config.stdin == "none":
            return _above(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        fd = _above(os.memfd_create("stdin", os.MFD_CLOEXEC))
        try:
            data = memoryview(self._document())
            while data:
                data = data[os.write(fd, data) :]
            os.lseek(fd, 0, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _document(self) -> bytes:
        claim, ctx = self._claim, self._ctx
        return msgspec.json.encode(
            {
                "job_id": ctx.job_id,
                "attempt": ctx.attempt,
                "token": ctx.token,
                "handler": ctx.handler,
                "vars": msgspec.Raw(claim.vars),
                "meta": None if claim.meta is None else msgspec.Raw(claim.meta),
                "params": msgspec.Raw(claim.params or b"{}"),
                "extras": msgspec.Raw(claim.extras or b"{}"),
                "needs": {name: msgspec.Raw(value) for name, value in (claim.needs or {}).items()},
                "saved": ctx.saved,
            }
        )

    # -- reading

    def _read_until_dead(self, pidfd: int, pipes: dict[int, Callable[[bytes], None]]) -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        for fd in pipes:
            poll.register(fd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            for fd in ready:
                if fd != pidfd and _read(fd, pipes[fd]) == b"":
                    poll.unregister(fd)  # it has closed it, and may run on
            if self._too_much:
                return  # the run has failed
            if pidfd in ready:
                break
        for fd, take in pipes.items():
            for _ in range(_MAX_DRAIN_READS):
                if self._too_much or not _read(fd, take):
                    break

    def _take_output(self, data: bytes) -> None:
        self._output += data
        self._too_much = len(self._output) > self._max_payload

    def _end(self, pidfd: int) -> int:
        """Reap it, killed with its group if it still runs; its exit status, or a negative signal number."""
        pid = self._pid
        if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        self._pid = 0  # from here on the number may become another's
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    # -- the result

    def _result(self, status: int, memory_was_full: bool) -> Any:
        if self._too_much:
            raise Failure(
                f"It wrote more than {size_literal(self._max_payload)} to its standard output, the limit of "
                "a payload, and was killed; store it elsewhere and write its location, set "
                'payload = "none", or raise ingester.max_payload.'
            )
        if status >= 0 and (retry := self._messages.retry) is not None:
            raise retry
        if status != 0 and self._interruption is not None:
            raise self._interruption
        if status != 0:
            raise self._ended(status, memory_was_full)
        return Result(payload=self._payload(), extras=self._messages.extras)

    def _ended(self, status: int, memory_was_full: bool) -> ProgramEnded:
        message = f"The program {death_text(status)}."
        if status < 0:
            if status == -signal.SIGKILL and memory_was_full:
                return ProgramEnded(f"{message} The memory of its control group was full.", status, "oom")
            return ProgramEnded(message, status, "crashed")
        if status in self._config.retry_codes:
            return ProgramEnded(message, status, "retry")
        return ProgramEnded(message, status, "failure" if status in self._config.fail_codes else "raised")

    def _payload(self) -> Any:
        if self._config.payload == "none":
            return None
        data = bytes(self._output)
        if self._config.payload == "bytes":
            return data
        try:
            json_text.refuse_non_finite("payload", data)
            return msgspec.Raw(msgspec.json.encode(msgspec.json.decode(data)))
        except (InvalidValue, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Failure(f"Its standard output is not JSON: {error}") from None


def _pipe() -> tuple[int, int]:
    """A pipe whose writing end is above the descriptors that a program is given."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    return reading, _above(writing)


def _above(fd: int) -> int:
    """The descriptor, above those that a program is given."""
    if fd > MESSAGES_FD:
        return fd
    moved = copy_up(fd)
    os.close(fd)
    return moved


def _read(fd: int, take: Callable[[bytes], None]) -> bytes | None:
    """Read once: empty at the end of the pipe, None when nothing is in it."""
    try:
        data = os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None
    if data:
        take(data)
    return data
