"""An attempt that a worker was given: its claim and deadlines, and its result if the worker dies."""

from __future__ import annotations

import math
import resource
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from workerd import host
from workerd.config.handler_config import Policy
from workerd.fingerprint import frames_of_dump
from workerd.job import Claim
from workerd.outcome import Outcome, RunResult, Usage
from workerd.pool.kept_log import KeptLog
from workerd.pool.scrubbing import Scrub, keep
from workerd.pool.shared import SOFT_SIGNAL
from workerd.redaction import Scrubber
from workerd.runtime.limits import cpu_us_of
from workerd.text import death_text

_PACKAGE = f'File "{Path(__file__).parent}/'


class KillReason(StrEnum):
    """Why the pool killed a worker; decides the result of its attempt."""

    NONE = ""  # not killed by the pool
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    OVERLAP_OVER = "overlap over"  # interrupted, because the time of a former generation is over
    OOM = "oom"
    HOST_OOM = "host out of memory"  # the kernel killed it, because the daemon's own control group was full
    PROTOCOL_ERROR = "protocol error"
    LOAD_TIMEOUT = "load timeout"
    NOT_READY = "not ready"  # it reported that it could not load
    RETIRED = "retired"  # recycled, or the pool ends


class AssignedAttempt:
    """A claim that was assigned to a worker.

    `serial` numbers the attempts of one worker. `deadline`, `grace`: seconds; the deadline is the job's own,
    else that of the policy, 0 for none.
    `start_ns`: CLOCK_MONOTONIC, when it was assigned, or when the pool saw the attempt before it end.
    `hard_deadline`: monotonic seconds after which the worker is killed. `interrupt_reason`: why the soft
    signal is being sent. `cancelled`: a cancel was requested, so it is not retried however it ends.
    `is_void`: it may not begin any more, since the node has lost the lease under which it was claimed.
    `state`: what it has saved, None if nothing. `log`: what it printed and logged, once it printed anything
    that may be kept. `scrubber`: of its output; made when it prints something, if its handler redacts values.
    """

    __slots__ = (
        "cancelled", "claim", "cpu_us", "deadline", "grace", "hard_deadline", "interrupt_reason", "is_void",
        "keep_log", "log", "log_limit", "note", "peak_kib", "progress", "progress_changed",
        "progress_sent_ns", "resumable", "scrubber", "serial", "stack", "start_ns", "state",
    )  # fmt: skip

    def __init__(self, serial: int, claim: Claim, policy: Policy, start_ns: int) -> None:
        self.serial = serial
        self.claim = claim
        own = claim.deadline_ms
        self.deadline = policy.deadline if own is None else own / 1000
        self.grace = policy.grace
        self.resumable = policy.resumable
        self.keep_log = policy.keep_log
        self.log_limit = policy.log_limit
        self.log: KeptLog | None = None
        self.start(start_ns)
        self.interrupt_reason = KillReason.NONE
        self.cancelled = False
        self.is_void = False
        self.progress: float | None = None
        self.note: str | None = None
        self.progress_changed = True
        self.progress_sent_ns = 0
        self.state: bytes | None = None
        self.stack: str | None = None
        self.peak_kib: int | None = None
        self.cpu_us: int | None = None
        self.scrubber: Scrubber | None = None

    def start(self, now_ns: int) -> None:
        """Count its deadlines from now."""
        self.start_ns = now_ns
        self.hard_deadline = now_ns / 1e9 + self.deadline + self.grace if self.deadline > 0 else math.inf

    def started_ns(self, result: RunResult, now_ns: int) -> int:
        """Its start, corrected by its run time: the pool learns late when a queued attempt started."""
        run_us = result.usage.run_us
        return self.start_ns if run_us is None else min(self.start_ns, now_ns - run_us * 1000)

    def measure(self, usage: resource.struct_rusage | None, cpu_us_before: int) -> None:
        """What it used, by what its dead worker used in all, and the CPU time of that before the attempt."""
        if usage is not None:
            self.cpu_us = max(0, cpu_us_of(usage) - cpu_us_before)
            self.peak_kib = max(self.peak_kib or 0, usage.ru_maxrss)

    def add(self, data: bytes, *, is_record: bool = False) -> None:
        """It printed this, or logged this record."""
        if self.log is None:
            self.log = KeptLog(self.log_limit)
        self.log.add(data, is_record=is_record)

    def with_log(self, outcome: Outcome, scrub: Scrub = keep) -> Outcome:
        """Its outcome, with its log if that is to be kept, scrubbed once more."""
        if self.log is None or (self.keep_log == "failures" and outcome.success is not False):
            return outcome
        text, dropped = self.log.text()
        scrubbed = scrub(text)
        if scrubbed != text:
            within_limit = KeptLog(self.log_limit)
            within_limit.add(scrubbed.encode())
            text, more = within_limit.text()
            dropped += more
        return msgspec.structs.replace(outcome, log=text, log_dropped=dropped) if text else outcome

    @property
    def soft_deadline_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of the soft deadline, 0 for none."""
        return self.start_ns + int(self.deadline * 1e9) if self.deadline > 0 else 0


_Kind = Literal["deadline", "cancelled", "interrupted", "oom", "crashed"]

_KINDS: dict[KillReason, _Kind] = {
    KillReason.DEADLINE: "deadline",
    KillReason.OOM: "oom",
    KillReason.HOST_OOM: "oom",
    KillReason.CANCELLED: "cancelled",
    KillReason.INTERRUPTED: "interrupted",
    KillReason.OVERLAP_OVER: "interrupted",
}


def result_of_death(
    attempt: AssignedAttempt, status: int, kill_reason: KillReason, now_ns: int, memory_max: int = 0
) -> RunResult:
    """The result of an attempt whose worker died.

    `status`: exit code, or a negative signal number. `memory_max`: bytes.
    """
    if kill_reason is KillReason.NONE and status == -SOFT_SIGNAL:
        # The handler restored the signal's default disposition, so the soft signal killed it.
        kill_reason = attempt.interrupt_reason
    return RunResult(
        serial=attempt.serial,
        kind=_KINDS.get(kill_reason, "crashed"),
        error=_death_error(attempt, status, kill_reason, memory_max),
        stack=attempt.stack,
        exit_signal=-status if status < 0 else None,
        exit_code=status if status >= 0 else None,
        usage=Usage(max(0, now_ns - attempt.start_ns) // 1000, attempt.cpu_us, attempt.peak_kib),
        progress=attempt.progress,
        note=attempt.note,
        frames=frames_of_dump(attempt.stack),
    )


def _death_error(attempt: AssignedAttempt, status: int, kill_reason: KillReason, memory_max: int) -> str:
    match kill_reason:
        case KillReason.DEADLINE:
            return f"Killed {attempt.grace:g} s after its deadline of {attempt.deadline:g} s had passed."
        case KillReason.OOM:
            return f"It used {attempt.peak_kib or 0} KiB of memory; the limit is {memory_max // 1024} KiB."
        case KillReason.CANCELLED:
            return "It was cancelled while running, did not end within its grace, and was killed."
        case KillReason.INTERRUPTED:
            return "Its pool was stopped before it had finished."
        case KillReason.OVERLAP_OVER:
            return "The overlap of a reload was over before it had finished."
    return death_error(status, kill_reason)


def death_error(status: int, kill_reason: KillReason = KillReason.NONE, *, ready: bool = True) -> str:
    """One sentence about a worker that died with this wait status; `ready`: it had loaded its handlers."""
    match kill_reason:
        case KillReason.PROTOCOL_ERROR:
            return "The worker's channel to the pool broke (did a handler close it?); the worker was killed."
        case KillReason.HOST_OOM:
            limit = host.limits().memory_bytes
            size = "" if limit is None else f", {limit // 1024} KiB,"
            return (
                f"The kernel killed its worker because the memory of the daemon's own control group{size}"
                " was full; set memory_max of the pools so that together they stay below it."
            )
        case KillReason.LOAD_TIMEOUT:
            return "The worker was not ready within `load_timeout` and was killed."
        case KillReason.NOT_READY:
            return "The worker could not load its handlers or run `init`."
    when = "" if ready else " while it loaded its handlers or ran `init`"
    return f"The worker {death_text(status)}{when}."


def handler_frames(dump: str) -> str:
    """The stack dump without the pool's own frames below the handler's."""
    kept, skipping = [], False
    for line in dump.splitlines():
        if not line.startswith("  "):
            skipping = False
        elif _PACKAGE in line:
            skipping = True
        if not skipping:
            kept.append(line)
    return "\n".join(kept)
