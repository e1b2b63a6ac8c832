"""What workers print and log: which attempt it belongs to, and the daemon's log that it goes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workerd.job import AttemptRef, id_text
from workerd.log import get_logger
from workerd.pool.attempt import AssignedAttempt
from workerd.pool.known_handlers import KnownHandlers
from workerd.pool.log_relay import record_in, relay
from workerd.pool.worker_messages import LogRecord
from workerd.runtime.loop import Loop
from workerd.runtime.output import OutputReader

log = get_logger("pool")


class OutputLog:
    """The output of all workers of a pool, in the daemon's log.

    `printed_at`: the turn of the loop in which the last of it was read. `scrubber_of`: what removes the
    values of an attempt that are not to be shown.
    """

    def __init__(self, pool: str, loop: Loop, handlers: KnownHandlers) -> None:
        self.printed_at = 0
        self.scrubber_of = handlers.scrubber_of
        self._pool = pool
        self._loop = loop

    def add_lines(self, worker: str, attempt: AssignedAttempt | None, lines: list[str]) -> None:
        """The worker printed these, while running `attempt`."""
        self.printed_at = self._loop.turns
        fields = self._fields(worker, attempt)
        for line in lines:
            log.info("output", line=line, **fields)

    def add_record(self, worker: str, attempt: AssignedAttempt | None, record: LogRecord) -> None:
        """A handler logged something in `attempt`, or outside of any."""
        self.printed_at = self._loop.turns
        relay(record, self._fields(worker, attempt))

    def add_truncation(self, worker: str, attempt: AssignedAttempt | None, count: int) -> None:
        """So many bytes of the worker's output were dropped."""
        log.warning("output.truncated", dropped_bytes=count, **self._fields(worker, attempt))

    def _fields(self, worker: str, attempt: AssignedAttempt | None) -> dict[str, Any]:
        fields: dict[str, Any] = {"pool": self._pool, "worker": worker}
        if attempt is not None:
            fields |= {
                "handler": attempt.claim.handler,
                "job": id_text(attempt.claim.id),
                "attempt": attempt.claim.attempt,
            }
        return fields


class WorkerOutput:
    """The output of one worker, told apart by attempt.

    `running`: the attempt that the worker is running; `ended`: the one before it, of which a thread or child
    that it left behind may still print and log. The worker's process sets both, without a call for each job.
    `before_read` is called before anything is read.
    """

    def __init__(
        self, loop: Loop, fd: int, worker: str, output_log: OutputLog, before_read: Callable[[], None]
    ) -> None:
        self.running: AssignedAttempt | None = None
        self.ended: AssignedAttempt | None = None
        self._worker = worker
        self._log = output_log
        self.reader = OutputReader(loop, fd, self._on_lines, before_read, self._on_record, self._scrubbed)

    def begin(self, attempt: AssignedAttempt) -> None:
        """What is read from now on belongs to this attempt, which keeps it if its policy says so."""
        self.running = attempt
        self.reader.keeper = None if attempt.keep_log == "none" else attempt

    def end_period(self) -> None:
        """Pass on what was read of an unfinished line, and tell how much was dropped."""
        dropped = self.reader.end_period()
        if dropped:
            self._log.add_truncation(self._worker, self.running, dropped)

    def log_of(self, ref: AttemptRef) -> tuple[AssignedAttempt, bool] | None:
        """The attempt that is meant, running or just ended, and whether it has ended; attempt 0: any."""
        for attempt, ended in ((self.running, False), (self.ended, True)):
            if attempt is None or attempt.claim.id != ref.id:
                continue
            if ref.attempt in (0, attempt.claim.attempt):
                return attempt, ended
        return None

    def _on_lines(self, lines: list[str]) -> None:
        self._log.add_lines(self._worker, self.running, lines)

    def _on_record(self, data: bytes) -> None:
        record = record_in(data)
        if record is None:  # user code has imitated a frame
            self._on_lines([self._scrubbed(data)[0].decode("utf-8", "replace")])
            return
        known = (self.running, self.ended)
        attempt = next((one for one in known if one is not None and one.serial == record.serial), None)
        self._log.add_record(self._worker, attempt, record)

    def _scrubbed(self, data: bytes) -> tuple[bytes, int]:
        kept_back = 0
        for attempt in (self.running, self.ended):
            scrubber = None if attempt is None else self._log.scrubber_of(attempt)
            if scrubber is not None:
                data, more = scrubber.in_bytes(data)
                kept_back = max(kept_back, more)
        return data, kept_back
