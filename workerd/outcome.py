"""How an attempt ended, and the constructors of every outcome that no handler reported."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from workerd.job import Claim, Key, Status


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


class Usage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an attempt used: microseconds of wall and CPU time, peak resident KiB."""

    run_us: int | None = None
    cpu_us: int | None = None
    max_rss_kib: int | None = None


class RunResult(
    msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="ending", tag_field="t", gc=False
):
    """What came out of one run, before any policy: by the worker, or by the pool in a dead one's name.

    kind
        `returned` · `failed` (Result(success=False)) · `failure` (raised Failure, or vars that do not
        fit) · `retry` (raised Retry) · `raised` (any other exception) · `skipped` (active() was false) ·
        `deadline` · `cancelled` · `crashed` · `oom` · `interrupted`.
    classes
        The exception's classes, most derived first, as `module.qualname`.
    after
        Seconds that `Retry` asks for. `pause`: seconds that the handler's `cooler()` asks for.
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
    pause: float | None = None
    tainted: bool = False  # the soft signal was raised in it: the worker must be replaced
    exit_signal: int | None = None
    exit_code: int | None = None
    usage: Usage = Usage()
    progress: float | None = None
    note: str | None = None


class Next(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The attempt that follows: microseconds after the closing, and the counters it starts with."""

    delay_us: int
    failures: int
    crashes: int
    losses: int


class Outcome(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """One statement's worth: closes exactly the attempt that it names (law 1), or gives it back.

    A release is an Outcome with status `new` and no reason. `node_id` names the incarnation that owns
    the claim when it is not this node's own (rescue). `again_us`: pause before the next run of a
    recurring handler, microseconds. Times are store times, microseconds.
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
    next: Next | None = None
    again_us: int | None = None
    node_id: bytes | None = None
    request_id: bytes | None = None
    step: int | None = None
    name: str | None = None
    unique_key: str | None = None

    @property
    def key(self) -> Key:
        return self.id, self.attempt


def release(claim: Claim) -> Outcome:
    """Give a claim back unharmed: the row becomes `new` again, no attempt is spent (law 4)."""
    return Outcome(
        id=claim.id,
        attempt=claim.attempt,
        claimed_at=claim.claimed_at,
        handler=claim.handler,
        status=Status.NEW,
        request_id=claim.request_id,
        unique_key=claim.unique_key,
    )
