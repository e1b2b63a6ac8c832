"""The worker's process: one job at a time, in a loop."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import struct
import threading
from collections.abc import Callable

import msgspec
import setproctitle

from workerd.config.model import PoolConfig
from workerd.errors import LoadError
from workerd.job import id_text
from workerd.messages import Assignment, Loaded
from workerd.outcome import RunResult
from workerd.pool import results
from workerd.pool.assignment_queue import LONGEST, assignment_in, serial_of
from workerd.pool.executor import Executor
from workerd.pool.isolation import IgnoredSignals, ProcessState, move_up
from workerd.pool.loading import LoadedHandlers, load
from workerd.pool.shared import SOFT_SIGNAL, SharedFlags, WorkerFds
from workerd.pool.worker_limits import Meter
from workerd.runtime.child import become_subreaper
from workerd.runtime.reaper import ZombieReaper

CANNOT_LOAD = 78
"""Exit status of a worker whose handlers, `init` or instances cannot be made."""

_LENGTH = struct.Struct("!i")
_READ = 32 * 1024
"""Bytes of one read; a buffer that malloc must map anew each time costs 17 µs."""


class WorkerChannel:
    """The worker's blocking ends: assignments by the lane, all else by the channel.

    Frames of the channel are those of `multiprocessing.Connection`. Measured: 3.6 µs for a frame there and
    one back, 6 with Connection itself.
    """

    def __init__(self, fd: int, lane: int, page: SharedFlags) -> None:
        self._fd = fd
        self._lane = lane
        self._page = page
        self._inbox = b""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Assignment)
        # Progress may come from a thread of the handler's.
        self._lock = threading.Lock()

    def send(self, message: msgspec.Struct) -> None:
        """Write a message, however long the pool takes. Raises OSError when the pool is gone."""
        body = self._encoder.encode(message)
        data = memoryview(_LENGTH.pack(len(body)) + body)
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]

    def receive(self) -> Assignment | None:
        """The next assignment; None when the pool has closed its ends."""
        message = os.read(self._lane, LONGEST)
        if not message:
            return None
        self._page.take_up(serial_of(message))
        return assignment_in(message, self._decoder) or self._receive_long()

    def _receive_long(self) -> Assignment | None:
        inbox = self._inbox
        while len(inbox) < 4 or (missing := 4 + _LENGTH.unpack_from(inbox)[0] - len(inbox)) > 0:
            data = os.read(self._fd, _READ if len(inbox) < 4 else max(_READ, missing))
            if not data:
                return None
            inbox += data
        end = 4 + _LENGTH.unpack_from(inbox)[0]
        self._inbox = inbox[end:]
        return self._decoder.decode(inbox[4:end])

    def close(self) -> None:
        """Close it; for a process that the handler forked, which must not speak to the pool."""
        for fd in (self._fd, self._lane):
            with contextlib.suppress(OSError):
                os.close(fd)


def worker_main(fds: WorkerFds, name: str, pool: PoolConfig, loaded: LoadedHandlers | None) -> int:
    """Be the worker `name` until the pool closes the channel; returns the exit status.

    `loaded` is None where the worker imports the handlers itself (`preload = false`).
    """
    os.setsid()
    # What user code leaves behind comes to the worker that it belongs to, and dies with it.
    become_subreaper()
    stray = IgnoredSignals()
    stray.install()
    surroundings = ProcessState(fds)
    for fd in {fds.output, fds.null, fds.dump} - {0, 1, 2}:
        os.close(fd)
    line = WorkerChannel(move_up(fds.channel), move_up(fds.lane), fds.page)
    setproctitle.setproctitle(f"workerd: worker {name}")
    try:
        told, executor = _prepare(pool, loaded, fds, line)
    except LoadError as error:
        line.send(Loaded(specs=None, error=str(error)))
        return CANNOT_LOAD
    signal.signal(SOFT_SIGNAL, executor.on_soft_signal)
    stray.install()
    surroundings.take()
    stray.give_back_in_children(_forked(line))
    line.send(told)
    return _serve(name, line, executor, surroundings, Meter())


def _prepare(
    pool: PoolConfig, loaded: LoadedHandlers | None, fds: WorkerFds, line: WorkerChannel
) -> tuple[Loaded, Executor]:
    """Import what is not there yet, call `init`, make the instances. Raises LoadError."""
    told = Loaded(specs=None)
    if loaded is None:
        loaded = load(pool)
        told = Loaded(specs=loaded.specs, sources=loaded.sources)
    executor = Executor(loaded.handlers, fds.page, line.send)
    executor.prepare(loaded.init)
    return told, executor


def _forked(line: WorkerChannel) -> Callable[[], None]:
    def tidy() -> None:
        signal.signal(SOFT_SIGNAL, signal.SIG_IGN)
        faulthandler.disable()  # its crash is not the worker's
        line.close()

    return tidy


def _serve(
    name: str, line: WorkerChannel, executor: Executor, surroundings: ProcessState, meter: Meter
) -> int:
    title = f"workerd: worker {name}"
    zombies = ZombieReaper()
    while (assignment := line.receive()) is not None:
        setproctitle.setproctitle(f"{title} {id_text(assignment.claim.id)}")
        surroundings.restore()
        meter.start()
        ending = executor.run(assignment)
        usage = meter.usage()
        # The pool must have read what it printed before it hears that it has ended: the next may print too.
        surroundings.flush()
        surroundings.wait_until_read()
        _report(line, msgspec.structs.replace(ending, usage=usage))
        setproctitle.setproctitle(title)
        zombies.after_job()
    return 0


def _report(line: WorkerChannel, ending: RunResult) -> None:
    try:
        line.send(ending)
    except OSError:
        os._exit(0)  # the pool is gone, and with it whoever could be told
    except Exception as error:
        line.send(results.untold(ending, error))
