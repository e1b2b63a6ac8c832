"""(policy, counters, result) -> what the row becomes and when the next attempt is due."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from workerd import clock
from workerd.config.model import Backoff, HandlerConfig, Policy, ScheduleConfig
from workerd.job import COOLER_KEY, ENDED, Claim, Status
from workerd.outcome import NextAttempt, Outcome, Reason, RunResult

# (policy, counters, ending) -> what the row becomes and when the next attempt is, or that there is none.
#
# Pure: the pool decides with it, the dispatcher uses `lost` for claims that nobody can answer for.
#

LONGEST = 36500 * 86400.0
"""Seconds; later than that a store cannot date the next attempt."""
LOSSES = 10
"""A job whose pool or node died so often ends as failure."""
LOSS_PAUSE = 60.0
"""Seconds; the longest pause after a loss."""

DEADLINE_EXCEEDED = "workerd.handler.DeadlineExceeded"
_DEADLINE_CLASSES = (DEADLINE_EXCEEDED, "builtins.BaseException")
_NEVER_AGAIN = frozenset({"builtins.SystemExit", "builtins.KeyboardInterrupt"})
_OWN = {name: f"workerd.handler.{name}" for name in ("DeadlineExceeded", "Cancelled", "Failure", "Retry")}


class Counters(Protocol):
    """What a row carries of its earlier attempts."""

    @property
    def failures(self) -> int: ...
    @property
    def crashes(self) -> int: ...
    @property
    def losses(self) -> int: ...


class PolicyDecision(NamedTuple):
    """What an ending makes of its row, and the attempt that follows."""

    status: Status
    reason: Reason
    success: bool | None
    next: NextAttempt | None


def effective(handler: HandlerConfig, options: Mapping[str, Any], recurring: bool | None = None) -> Policy:
    """The handler's policy: built-in < `[defaults]` < decorator < its own table.

    `recurring`: whether the run is one of a chain or a schedule; by default, whether the handler recurs.
    """
    layers: dict[str, Any] = {**handler.policy_defaults, **options}
    if handler.schedule.recurs if recurring is None else recurring:
        # The next run is its retry; repeating this one would let runs pile up.
        layers |= {"max_attempts": 1, "max_crashes": 1}
    layers |= handler.policy_own
    return msgspec.convert({k: _plain(v) for k, v in layers.items()}, Policy)


def _plain(value: Any) -> Any:
    return msgspec.structs.asdict(value) if isinstance(value, Backoff) else value


def deadline_of(claim: Claim, policy: Policy) -> float:
    """Seconds until the soft deadline of this claim, 0 for none; what was given at enqueue comes first."""
    return policy.deadline if claim.deadline_ms is None else claim.deadline_ms / 1000


# -- which rule an exception falls under -------------------------------------------------------


def canonical(name: str) -> str:
    """The `module.qualname` that a class name of a policy stands for, without importing anything."""
    if name.removeprefix("workerd.") in _OWN:
        return _OWN[name.removeprefix("workerd.")]
    return name if "." in name else f"builtins.{name}"


def _names(listed: tuple[str, ...], classes: frozenset[str], aliases: Mapping[str, str]) -> bool:
    return any((aliases.get(name) or canonical(name)) in classes for name in listed)


PolicyMatch = Literal["ignore", "fail", "retry"]


def judge(policy: Policy, classes: tuple[str, ...], aliases: Mapping[str, str]) -> PolicyMatch:
    """What the policy says of an exception whose classes (most derived first) are these."""
    known = frozenset(classes)
    if _names(policy.ignore, known, aliases):
        return "ignore"
    if known & _NEVER_AGAIN or _names(policy.fail_on, known, aliases):
        return "fail"
    return "retry" if _names(policy.retry_on, known, aliases) else "fail"


# -- when the next attempt is ------------------------------------------------------------------


def pause(backoff: Backoff, nth: int, rng: Callable[[], float] = random.random) -> float:
    """Seconds before the attempt after the `nth` failure: `first` × `factor`ⁿ⁻¹, at most `max`.

    `jitter` takes away up to that part of it, so that jobs which failed together do not come back together.
    """
    try:
        longest = backoff.first * backoff.factor ** (nth - 1)
    except OverflowError:
        longest = backoff.max
    return min(longest, backoff.max) * (1 - backoff.jitter * rng())


def _us(seconds: float) -> int:
    return round(max(0.0, min(seconds, LONGEST)) * clock.SECOND)


class _Case(NamedTuple):
    """One ending under one policy, with what the rules below need."""

    policy: Policy
    before: Counters
    ending: RunResult
    aliases: Mapping[str, str]
    rng: Callable[[], float]
    max_attempts: int


def _failed_once_more(case: _Case, reason: Reason) -> PolicyDecision:
    failures = case.before.failures + 1
    if failures >= case.max_attempts:
        return PolicyDecision(Status.FAILURE, reason, False, None)
    after = case.ending.after
    seconds = pause(case.policy.backoff, failures, case.rng) if after is None else after
    return PolicyDecision(
        Status.RETRY,
        reason,
        False,
        NextAttempt(_us(seconds), failures, case.before.crashes, case.before.losses),
    )


def _asked_again(case: _Case) -> PolicyDecision:
    if case.ending.counted:
        return _failed_once_more(case, Reason.RETRY)
    before, after = case.before, case.ending.after
    seconds = pause(case.policy.backoff, before.failures + 1, case.rng) if after is None else after
    return PolicyDecision(
        Status.RETRY,
        Reason.RETRY,
        False,
        NextAttempt(_us(seconds), before.failures, before.crashes, before.losses),
    )


def _raised(case: _Case) -> PolicyDecision:
    match judge(case.policy, case.ending.classes, case.aliases):
        case "ignore":
            return PolicyDecision(Status.COMPLETED, Reason.IGNORED, True, None)
        case "fail":
            return PolicyDecision(Status.FAILURE, Reason.ERROR, False, None)
        case "retry":
            return _failed_once_more(case, Reason.ERROR)


def _overran(case: _Case) -> PolicyDecision:
    if _names(case.policy.fail_on, frozenset(_DEADLINE_CLASSES), case.aliases):
        return PolicyDecision(Status.FAILURE, Reason.DEADLINE, False, None)
    return _failed_once_more(case, Reason.DEADLINE)


def _crashed(case: _Case) -> PolicyDecision:
    reason = Reason.OOM if case.ending.kind == "oom" else Reason.CRASHED
    before, crashes = case.before, case.before.crashes + 1
    if crashes >= case.policy.max_crashes:
        return PolicyDecision(Status.FAILURE, reason, False, None)
    seconds = pause(case.policy.backoff, crashes, case.rng)
    return PolicyDecision(
        Status.RETRY, reason, False, NextAttempt(_us(seconds), before.failures, crashes, before.losses)
    )


def _interrupted(case: _Case) -> PolicyDecision:
    before = case.before
    return PolicyDecision(
        Status.RETRY, Reason.INTERRUPTED, None, NextAttempt(0, before.failures, before.crashes, before.losses)
    )


RULES: dict[str, PolicyDecision | Callable[[_Case], PolicyDecision]] = {
    "returned": PolicyDecision(Status.COMPLETED, Reason.OK, True, None),
    "skipped": PolicyDecision(Status.COMPLETED, Reason.SKIPPED, None, None),
    "failed": PolicyDecision(Status.FAILURE, Reason.FAILURE, False, None),
    "failure": PolicyDecision(Status.FAILURE, Reason.FAILURE, False, None),
    "cancelled": PolicyDecision(Status.CANCELLED, Reason.CANCELLED, None, None),
    "retry": _asked_again,
    "raised": _raised,
    "deadline": _overran,
    "crashed": _crashed,
    "oom": _crashed,
    "interrupted": _interrupted,
}
"""Every kind of ending and what follows from it."""


def decide(
    policy: Policy,
    before: Counters,
    ending: RunResult,
    *,
    aliases: Mapping[str, str] | None = None,
    max_attempts: int | None = None,
    rng: Callable[[], float] = random.random,
) -> PolicyDecision:
    """What this ending makes of its row. `max_attempts`: as given at enqueue, before the policy's own."""
    rule = RULES[ending.kind]
    if isinstance(rule, PolicyDecision):
        return rule
    limit = policy.max_attempts if max_attempts is None else max_attempts
    return rule(_Case(policy, before, ending, aliases or {}, rng, limit))


def next_after_loss(before: Counters) -> NextAttempt | None:
    """The attempt after one whose pool or node died: 1 s × 2^losses later, None after LOSSES of them."""
    losses = before.losses + 1
    if losses >= LOSSES:
        return None
    seconds = min(2.0**before.losses, LOSS_PAUSE)
    return NextAttempt(_us(seconds), before.failures, before.crashes, losses)


def settle(
    claim: Claim,
    ending: RunResult,
    policy: Policy,
    *,
    aliases: Mapping[str, str] | None = None,
    started_ns: int | None = None,
    finished_ns: int | None = None,
    pid: int | None = None,
    schedule: ScheduleConfig | None = None,
    rng: Callable[[], float] = random.random,
) -> Outcome:
    """The outcome of a claim whose run ended so; times are monotonic nanoseconds, None if it never ran.

    `schedule`: the handler's, so that the chain of a cooler goes on.
    """
    decision = decide(policy, claim, ending, aliases=aliases, max_attempts=claim.max_attempts, rng=rng)
    ignored = decision.reason is Reason.IGNORED
    return Outcome(
        id=claim.id,
        attempt=claim.attempt,
        claimed_at=claim.claimed_at,
        handler=claim.handler,
        status=decision.status,
        reason=decision.reason,
        success=decision.success,
        payload=ending.payload,
        payload_type=ending.payload_type,
        extras=ending.extras,
        spawn=ending.spawn,
        error=ending.error,
        stack=None if ignored else ending.stack,
        exit_signal=ending.exit_signal,
        exit_code=ending.exit_code,
        run_at=claim.run_at,
        started_at=_store_time(claim, started_ns),
        finished_at=_store_time(claim, finished_ns),
        usage=ending.usage,
        pid=pid,
        progress=ending.progress,
        note=ending.note,
        next=decision.next,
        next_run_us=_again(claim, decision.status, ending, schedule),
        request_id=claim.request_id,
        step=claim.step,
        name=claim.name,
        unique_key=claim.unique_key,
    )


def _store_time(claim: Claim, ns: int | None) -> int | None:
    return None if ns is None else clock.after(claim.claimed_at, claim.mono, ns)


def _again(claim: Claim, status: Status, ending: RunResult, schedule: ScheduleConfig | None) -> int | None:
    """Microseconds until the chain's next run; None where the row is not the chain, or stays it."""
    if schedule is None or schedule.cooler is None or claim.unique_key != COOLER_KEY or status not in ENDED:
        return None
    return _us(schedule.cooler if ending.pause is None else ending.pause)
