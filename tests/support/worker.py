"""A worker process; the test plays its pool."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time
from typing import Any

import msgspec

from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.job import Claim, new_id
from workerd.outcome import RunResult
from workerd.pool.assignment_queue import AssignmentQueue
from workerd.pool.isolation import forget_exit_functions
from workerd.pool.loading import LoadedHandlers, load
from workerd.pool.shared import SharedFlags, WorkerFds
from workerd.pool.worker import worker_main
from workerd.pool.worker_messages import Assignment, FromWorker, Loaded, Progressed, ToWorker
from workerd.runtime.child import fork

_LENGTH = struct.Struct("!i")
_decoder = msgspec.msgpack.Decoder(FromWorker)


def pool_of(name: str = "test", /, **calls: Any) -> PoolConfig:
    """Build a pool from handlers as name="module:attribute"; other values are keys of the pool."""
    keys = {k: v for k, v in calls.items() if not isinstance(v, str)}
    handlers = tuple(
        HandlerConfig(name=k, call=v, pool=name)
        for k, v in calls.items()
        if isinstance(v, str) and k not in ("init", "setup")
    )
    keys |= {k: calls[k] for k in ("init", "setup") if k in calls}
    return PoolConfig(name=name, handlers=handlers, **keys)


def claim_of(handler: str, values: Any = None, **more: Any) -> Claim:
    """Build a new claim; `values` are its vars, as an object or as JSON bytes."""
    data = values if isinstance(values, bytes) else msgspec.json.encode(values or {})
    given = {"id": new_id(), "attempt": 1, "claimed_at": 0, "mono": time.monotonic_ns(), "run_at": 0}
    return Claim(handler=handler, vars=data, **(given | more))


def forked_worker(fds: WorkerFds, name: str, pool: PoolConfig, loaded: LoadedHandlers | None) -> int:
    """Be a worker without the exit functions of pytest, as a pool is without those of its supervisor."""
    forget_exit_functions()
    return worker_main(fds, name, pool, loaded)


class Worker:
    """One forked worker and the pool's ends of its channels."""

    def __init__(self, pool: PoolConfig, *, preload: bool = True) -> None:
        before = list(sys.path)
        loaded = load(pool) if preload else None
        sys.path[:] = before
        self.flags = SharedFlags()
        self.sock, theirs = socket.socketpair()
        self.output, writing = os.pipe()
        self.dump = os.memfd_create("dump")
        null = os.open(os.devnull, os.O_RDWR)
        self.assignments = AssignmentQueue()
        fds = WorkerFds(theirs.fileno(), self.assignments.fileno(), writing, null, self.flags, self.dump)
        self.child = fork(
            lambda: forked_worker(fds, f"{pool.name}/0", pool, loaded),
            keep=(fds.channel, fds.assignments, writing, null, self.dump),
        )
        theirs.close()
        os.close(writing)
        os.close(null)
        os.set_blocking(self.output, False)
        self.sock.settimeout(20)
        self.serial = 0
        self.progress: list[Progressed] = []
        first = self.receive()
        assert isinstance(first, Loaded)
        self.loaded = first

    def receive(self) -> Any:
        """Receive the next message; None at end of file."""
        head = self._exactly(4)
        return _decoder.decode(self._exactly(_LENGTH.unpack(head)[0])) if head else None

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            some = self.sock.recv(count - len(data))
            if not some:
                return b""
            data += some
        return data

    def assign(
        self, handler: str, values: Any = None, *, deadline: float = 0, limit: int = 1 << 20, **more: Any
    ) -> None:
        """Assign a job without waiting for its result."""
        self.serial += 1
        soft = time.monotonic_ns() + int(deadline * 1e9) if deadline else 0
        self.flags.begin(self.serial, soft)
        assignment = Assignment(self.serial, claim_of(handler, values, **more), deadline, limit)
        if not self.assignments.put(assignment):
            self.assignments.put_marker(assignment)
            self.send(assignment)

    def send(self, message: ToWorker) -> None:
        """Send a message over the channel."""
        body = msgspec.msgpack.encode(message)
        self.sock.sendall(_LENGTH.pack(len(body)) + body)

    def result(self) -> RunResult:
        """Wait for the result of the current job; progress is collected."""
        while True:
            message = self.receive()
            if isinstance(message, Progressed):
                self.progress.append(message)
                continue
            assert isinstance(message, RunResult), message
            assert message.serial == self.serial
            return message

    def run(self, handler: str, values: Any = None, **more: Any) -> RunResult:
        """Assign a job and wait for its result."""
        self.assign(handler, values, **more)
        return self.result()

    def signal(self, signum: int) -> None:
        self.child.kill(signum)

    def printed(self) -> str:
        """Return its output so far."""
        parts = []
        try:
            while data := os.read(self.output, 1 << 16):
                parts.append(data)
        except BlockingIOError:
            pass
        return b"".join(parts).decode("utf-8", "replace")

    def status(self) -> int:
        """Wait until it is dead; return the wait status as in Child."""
        while self.child.reap() is None:
            signal.sigtimedwait([signal.SIGCHLD], 0.01)
        assert self.child.status is not None
        return self.child.status

    def disconnect(self) -> None:
        """Close the pool's ends: it reads end of file, as when its pool is dead."""
        self.assignments.close_writing_end()
        self.sock.close()

    def close(self) -> None:
        """Kill it and its process group, and close all descriptors."""
        self.sock.close()
        self.assignments.close()
        if self.child.reap() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.status()
        self.child.close()
        os.close(self.output)
        os.close(self.dump)
        self.flags.close()
