"""How an attempt ended, and the constructors of every outcome that no handler reported."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from workerd import fingerprint
from workerd.job import AttemptRef, ClaimedAttempt, HeldAttempt, LimitUse, Status
from workerd.text import one_line


class Reason(StrEnum):
    """The column `reason`: how an attempt ended."""

    OK = "ok"
    IGNORED = "ignored"
    SKIPPED = "skipped"
    RETRY = "retry"
    ERROR = "error"
    FAILURE = "failure"
    REFUSED = "refused"
    DEADLINE = "deadline"
    CRASHED = "crashed"
    OOM = "oom"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


BAD_REASONS = frozenset(
    {
        Reason.ERROR, Reason.FAILURE, Reason.DEADLINE, Reason.CRASHED, Reason.OOM, Reason.LOST,
        Reason.REFUSED,
    }
)  # fmt: skip
"""Attempts with these reasons have an error class and a fingerprint, and are counted in error groups."""


class Usage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Resources used by an attempt: microseconds of wall and CPU time, peak resident KiB."""

    run_us: int | None = None
    cpu_us: int | None = None
    max_rss_kib: int | None = None


class RunTrace(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The trace of one run: the context of its enqueue as W3C headers, and its spans.

    `spans`: as `workerd.tracing.spans` encodes them, empty where the run is not sampled; None: its worker
    died, so the ingester makes the span of it.
    """

    traceparent: str = ""
    tracestate: str = ""
    spans: bytes | None = None


class RunResult(
    msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="ending", tag_field="t", gc=False
):
    """The result of one run, before the policy: from the worker, or from the pool if the worker died.

    kind
        `returned` · `failed` (Result(success=False)) · `failure` (raised Failure, or vars that do not
        fit) · `retry` (raised Retry) · `raised` (any other exception) · `skipped` (active() was false) ·
        `deadline` · `cancelled` · `crashed` · `oom` · `interrupted`.
    classes
        The exception's classes, most derived first, as `module.qualname`. `frames`: the innermost ones of
        the user's code, as `fingerprint.user_frames` returns them.
    after
        Seconds that `Retry` asks for; `hold`: what else is to wait for so long. `pause`: seconds that the
        handler's `cooler()` asks for.
    """

    serial: int
    kind: Literal[
        "returned", "failed", "failure", "retry", "raised", "skipped",
        "deadline", "cancelled", "crashed", "oom", "interrupted",
    ]  # fmt: skip
    payload: bytes | None = None
    payload_type: Literal["bytes", "json"] | None = None
    extras: bytes | None = None  # JSON object
    spawn: bytes | None = None  # JSON array
    error: str | None = None
    stack: str | None = None
    classes: tuple[str, ...] = ()
    after: float | None = None
    counted: bool = True
    hold: Literal["group", "limit"] | None = None
    pause: float | None = None
    tainted: bool = False  # interrupted, or its process cannot be put back: the worker must be replaced
    exit_signal: int | None = None
    exit_code: int | None = None
    usage: Usage = Usage()
    progress: float | None = None
    note: str | None = None
    frames: tuple[str, ...] = ()
    trace: RunTrace | None = None


class NextAttempt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The attempt that follows: its delay after the closing, microseconds, and its counters."""

    delay_us: int
    failures: int
    crashes: int
    losses: int


class Hold(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """No further start of the attempt's group or limit for so long, counted from the closing."""

    scope: Literal["group", "limit"]
    delay_us: int


class Outcome(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """How one attempt ended: closes exactly the attempt that it names, or releases it (law 1).

    A release is an Outcome with status `new` and no reason. `node_id`: the incarnation that owns the
    claim, if it is not this node's own (rescue). `next_run_us`: pause before the next run of a
    recurring handler, microseconds. `error_class`, `fingerprint`: of the BAD_REASONS. `state`: what the
    attempt saved last, empty to clear it, None to leave what the row has. `log`: what is kept of what it
    printed and logged, without `log_dropped` bytes. `trace`: of a run, where it is traced. Times are store
    times, microseconds.
    """

    id: bytes
    attempt: int
    claimed_at: int
    handler: str
    status: Status
    reason: Reason | None = None
    success: bool | None = None
    payload: bytes | None = None
    payload_type: Literal["bytes", "json"] | None = None
    extras: bytes | None = None
    spawn: bytes | None = None
    error: str | None = None
    stack: str | None = None
    exit_signal: int | None = None
    exit_code: int | None = None
    run_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    usage: Usage = Usage()
    pid: int | None = None
    progress: float | None = None
    note: str | None = None
    next: NextAttempt | None = None
    next_run_us: int | None = None
    node_id: bytes | None = None
    request_id: bytes | None = None
    step: int | None = None
    name: str | None = None
    unique_key: str | None = None
    # New fields at the end: a spool may hold arrays of the version before.
    state: bytes | None = None
    error_class: str | None = None
    fingerprint: bytes | None = None
    log: str | None = None
    log_dropped: int = 0
    limited: LimitUse | None = None
    hold: Hold | None = None
    trace: RunTrace | None = None

    @property
    def ref(self) -> AttemptRef:
        return AttemptRef(self.id, self.attempt)


class ClosedAttempt(msgspec.Struct, frozen=True, gc=False):
    """An outcome as it is recorded: with the incarnation that held the claim, and its times in order.

    Times are store times, microseconds.
    """

    outcome: Outcome
    node_id: bytes
    started_at: int | None
    finished_at: int

    @property
    def identity(self) -> tuple[bytes, int, int, bytes]:
        """What a statement that closes or releases the attempt must name (law 1)."""
        o = self.outcome
        return o.id, o.attempt, o.claimed_at, self.node_id


def without_log(outcome: Outcome, why: str) -> Outcome:
    """The outcome with a sentence in place of its log."""
    if outcome.log is None:
        return outcome
    size = len(outcome.log.encode()) + outcome.log_dropped
    return msgspec.structs.replace(outcome, log=f"(The log was left out: {why}.)\n", log_dropped=size)


def released(attempt: ClaimedAttempt) -> Outcome:
    """The row becomes `new` again and no attempt is spent: it cannot have run (law 4)."""
    return Outcome(
        id=attempt.id,
        attempt=attempt.attempt,
        claimed_at=attempt.claimed_at,
        handler=attempt.handler,
        status=Status.NEW,
        request_id=attempt.request_id,
        unique_key=attempt.unique_key,
        limited=attempt.limited,
    )


def lost(
    attempt: HeldAttempt, error: str, retry: NextAttempt | None, node_id: bytes | None = None
) -> Outcome:
    """Its pool or node died, so it may have run; with what was reported of it until then.

    retry
        The attempt that follows, None to end the job as `failure`.
    node_id
        The dead incarnation that claimed it, None for this one.
    """
    status = Status.FAILURE if retry is None else Status.RETRY
    outcome = _unreported(attempt, status, Reason.LOST, False, error, retry, node_id)
    return msgspec.structs.replace(outcome, started_at=attempt.started_at, pid=attempt.pid)


def failed(attempt: ClaimedAttempt, error: str) -> Outcome:
    """The attempt can never be run; `error` says why, cut to the limit of the column."""
    return _unreported(attempt, Status.FAILURE, Reason.FAILURE, False, error)


def unreadable(attempt: ClaimedAttempt, why: str) -> Outcome:
    """The row of the job cannot be read."""
    return failed(attempt, f"The job's row cannot be read: {why}. Correct the row, then retry the job.")


def cancelled(attempt: ClaimedAttempt, error: str) -> Outcome:
    """The attempt was cancelled before it ran."""
    return _unreported(attempt, Status.CANCELLED, Reason.CANCELLED, None, error)


def expired(attempt: ClaimedAttempt, error: str) -> Outcome:
    """The attempt did not begin in time."""
    return _unreported(attempt, Status.CANCELLED, Reason.EXPIRED, None, error)


def refused(outcome: Outcome, error: str, *, bare: bool = False) -> Outcome:
    """The store refused `outcome`: a failure without anything that a handler put into it.

    `bare` drops times and usage too: only the identity and what follows from the end stay.
    """
    return Outcome(
        id=outcome.id,
        attempt=outcome.attempt,
        claimed_at=outcome.claimed_at,
        handler=outcome.handler,
        status=Status.FAILURE,
        reason=Reason.REFUSED,
        success=False,
        error=one_line(error),
        run_at=None if bare else outcome.run_at,
        started_at=None if bare else outcome.started_at,
        finished_at=None if bare else outcome.finished_at,
        usage=Usage() if bare else outcome.usage,
        pid=None if bare else outcome.pid,
        next_run_us=outcome.next_run_us,
        state=None if bare else outcome.state,
        node_id=outcome.node_id,
        request_id=outcome.request_id,
        step=outcome.step,
        name=outcome.name,
        unique_key=outcome.unique_key,
        error_class=fingerprint.REFUSED,
        fingerprint=fingerprint.fingerprint(outcome.handler, Reason.REFUSED, fingerprint.REFUSED, error),
        limited=outcome.limited,
        hold=outcome.hold,
        trace=outcome.trace,
    )


_UNREPORTED_CLASSES = {Reason.LOST: fingerprint.LOST, Reason.FAILURE: fingerprint.BAD_VARS}


def _unreported(
    attempt: ClaimedAttempt,
    status: Status,
    reason: Reason,
    success: bool | None,
    error: str,
    retry: NextAttempt | None = None,
    node_id: bytes | None = None,
) -> Outcome:
    error_class = _UNREPORTED_CLASSES.get(reason)
    return Outcome(
        id=attempt.id,
        attempt=attempt.attempt,
        claimed_at=attempt.claimed_at,
        handler=attempt.handler,
        status=status,
        reason=reason,
        success=success,
        error=one_line(error),
        next=retry,
        node_id=node_id,
        request_id=attempt.request_id,
        step=attempt.step,
        name=attempt.name,
        unique_key=attempt.unique_key,
        error_class=error_class,
        fingerprint=None
        if error_class is None
        else fingerprint.fingerprint(attempt.handler, reason, error_class, error),
        limited=attempt.limited,
    )
