"""(policy, claim, result) -> Outcome: what the row becomes, and when the next attempt is due. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from workerd import clock, fingerprint
from workerd.config.handler_config import Backoff, HandlerConfig, Policy
from workerd.config.schedule_config import ScheduleConfig
from workerd.job import COOLER_KEY, ENDED, Claim, ClaimedAttempt, Status
from workerd.outcome import BAD_REASONS, Hold, NextAttempt, Outcome, Reason, RunResult

MAX_PAUSE_S = 36500 * 86400.0
"""Later than that, a store cannot represent the date of the next attempt."""
MAX_LOSSES = 10
"""A job whose pool or node died so often ends as failure."""
MAX_LOSS_PAUSE_S = 60.0

DEADLINE_EXCEEDED = "workerd.handler.DeadlineExceeded"
_DEADLINE_CLASSES = (DEADLINE_EXCEEDED, "builtins.BaseException")
EXIT_PREFIX = "Exit:"
"""Before the exit status of a program, in the class that it counts as."""
_NEVER_RETRIED = frozenset({"builtins.SystemExit", "builtins.KeyboardInterrupt"})
_WORKERD_CLASSES = {
    name: f"workerd.handler.{name}" for name in ("DeadlineExceeded", "Cancelled", "Failure", "Retry")
}


class PolicyDecision(NamedTuple):
    """What a result makes of the row, and the attempt that follows."""

    status: Status
    reason: Reason
    success: bool | None
    next: NextAttempt | None


def effective(handler: HandlerConfig, options: Mapping[str, Any], recurring: bool | None = None) -> Policy:
    """The handler's policy: built-in < `[defaults]` < decorator < its own table.

    `recurring`: whether the run belongs to a recurring handler or workflow; by default, whether the handler
    recurs.
    """
    layers: dict[str, Any] = {**handler.policy_defaults, **options}
    if handler.schedule.recurs if recurring is None else recurring:
        # The next run is its retry; retries of each run would pile up.
        layers |= {"max_attempts": 1, "max_crashes": 1}
    layers |= handler.policy_own
    return msgspec.convert({k: _plain(v) for k, v in layers.items()}, Policy)


def _plain(value: Any) -> Any:
    return msgspec.structs.asdict(value) if isinstance(value, Backoff) else value


# -- matching exceptions -------------------------------------------------------


def canonical(name: str) -> str:
    """The `module.qualname` that a class name in a policy denotes; nothing is imported."""
    if name.removeprefix("workerd.") in _WORKERD_CLASSES:
        return _WORKERD_CLASSES[name.removeprefix("workerd.")]
    return name if "." in name or name.startswith(EXIT_PREFIX) else f"builtins.{name}"


def _names(listed: tuple[str, ...], classes: frozenset[str], aliases: Mapping[str, str]) -> bool:
    return any((aliases.get(name) or canonical(name)) in classes for name in listed)


PolicyMatch = Literal["ignore", "fail", "retry"]


def match_policy(policy: Policy, classes: tuple[str, ...], aliases: Mapping[str, str]) -> PolicyMatch:
    """How the policy treats an exception with these classes, most derived first."""
    known = frozenset(classes)
    if _names(policy.ignore, known, aliases):
        return "ignore"
    if known & _NEVER_RETRIED or _names(policy.fail_on, known, aliases):
        return "fail"
    return "retry" if _names(policy.retry_on, known, aliases) else "fail"


# -- pauses ------------------------------------------------------------------


def backoff_pause(backoff: Backoff, nth: int, rng: Callable[[], float] = random.random) -> float:
    """Seconds before the attempt after the `nth` failure: `first` × `factor`ⁿ⁻¹, at most `max`.

    `jitter` shortens it by up to that fraction, so that jobs which failed together are not retried together.
    """
    try:
        longest = backoff.first * backoff.factor ** (nth - 1)
    except OverflowError:
        longest = backoff.max
    return min(longest, backoff.max) * (1 - backoff.jitter * rng())


def _us(seconds: float) -> int:
    return round(max(0.0, min(seconds, MAX_PAUSE_S)) * clock.SECOND)


class _Case(NamedTuple):
    """One result under one policy: what the rules below need."""

    policy: Policy
    attempt: ClaimedAttempt
    result: RunResult
    aliases: Mapping[str, str]
    rng: Callable[[], float]

    def pause(self, nth: int) -> float:
        """Seconds that Retry asked for, else the backoff after the `nth` failure."""
        after = self.result.after
        return backoff_pause(self.policy.backoff, nth, self.rng) if after is None else after


def _retry(
    case: _Case,
    reason: Reason,
    seconds: float,
    *,
    failures: int = 0,
    crashes: int = 0,
    success: bool | None = False,
) -> PolicyDecision:
    """Retry after `seconds`; `failures` and `crashes` are added to the counters."""
    attempt = case.attempt
    following = NextAttempt(
        _us(seconds), attempt.failures + failures, attempt.crashes + crashes, attempt.losses
    )
    return PolicyDecision(Status.RETRY, reason, success, following)


def _failed(case: _Case, reason: Reason) -> PolicyDecision:
    given = case.attempt.max_attempts
    failures = case.attempt.failures + 1
    if failures >= (case.policy.max_attempts if given is None else given):
        return PolicyDecision(Status.FAILURE, reason, False, None)
    return _retry(case, reason, case.pause(failures), failures=1)


def _retry_requested(case: _Case) -> PolicyDecision:
    if case.result.counted:
        return _failed(case, Reason.RETRY)
    return _retry(case, Reason.RETRY, case.pause(case.attempt.failures + 1))


def _raised(case: _Case) -> PolicyDecision:
    match match_policy(case.policy, case.result.classes, case.aliases):
        case "ignore":
            return PolicyDecision(Status.COMPLETED, Reason.IGNORED, True, None)
        case "fail":
            return PolicyDecision(Status.FAILURE, Reason.ERROR, False, None)
        case "retry":
            return _failed(case, Reason.ERROR)


def _deadline_exceeded(case: _Case) -> PolicyDecision:
    if _names(case.policy.fail_on, frozenset(_DEADLINE_CLASSES), case.aliases):
        return PolicyDecision(Status.FAILURE, Reason.DEADLINE, False, None)
    return _failed(case, Reason.DEADLINE)


def _crashed(case: _Case) -> PolicyDecision:
    reason = Reason.OOM if case.result.kind == "oom" else Reason.CRASHED
    crashes = case.attempt.crashes + 1
    if crashes >= case.policy.max_crashes:
        return PolicyDecision(Status.FAILURE, reason, False, None)
    return _retry(case, reason, case.pause(crashes), crashes=1)


def _interrupted(case: _Case) -> PolicyDecision:
    return _retry(case, Reason.INTERRUPTED, 0.0, success=None)


RULES: dict[str, PolicyDecision | Callable[[_Case], PolicyDecision]] = {
    "returned": PolicyDecision(Status.COMPLETED, Reason.OK, True, None),
    "skipped": PolicyDecision(Status.COMPLETED, Reason.SKIPPED, None, None),
    "failed": PolicyDecision(Status.FAILURE, Reason.FAILURE, False, None),
    "failure": PolicyDecision(Status.FAILURE, Reason.FAILURE, False, None),
    "cancelled": PolicyDecision(Status.CANCELLED, Reason.CANCELLED, None, None),
    "retry": _retry_requested,
    "raised": _raised,
    "deadline": _deadline_exceeded,
    "crashed": _crashed,
    "oom": _crashed,
    "interrupted": _interrupted,
}
"""What follows from each kind of result."""


def decision(
    policy: Policy,
    attempt: ClaimedAttempt,
    result: RunResult,
    *,
    aliases: Mapping[str, str] | None = None,
    rng: Callable[[], float] = random.random,
) -> PolicyDecision:
    """What this result makes of the row of `attempt`."""
    rule = RULES[result.kind]
    if isinstance(rule, PolicyDecision):
        return rule
    return rule(_Case(policy, attempt, result, aliases or {}, rng))


def next_after_loss(attempt: ClaimedAttempt) -> NextAttempt | None:
    """The attempt after one whose pool or node died: 1 s × 2^losses later; None after MAX_LOSSES."""
    losses = attempt.losses + 1
    if losses >= MAX_LOSSES:
        return None
    seconds = min(2.0**attempt.losses, MAX_LOSS_PAUSE_S)
    return NextAttempt(_us(seconds), attempt.failures, attempt.crashes, losses)


def decide(
    policy: Policy,
    claim: Claim,
    result: RunResult,
    *,
    aliases: Mapping[str, str] | None = None,
    started_ns: int | None = None,
    finished_ns: int | None = None,
    pid: int | None = None,
    schedule: ScheduleConfig | None = None,
    state: bytes | None = None,
    rng: Callable[[], float] = random.random,
) -> Outcome:
    """The outcome of a claim whose run had this result.

    Times are monotonic nanoseconds, None if it never ran. `schedule`: the handler's; with a cooler the
    outcome says when the next run is due. `state`: what the run saved, None if nothing.
    """
    decided = decision(policy, claim, result, aliases=aliases, rng=rng)
    ignored = decided.reason is Reason.IGNORED
    error_class = _error_class(result) if decided.reason in BAD_REASONS else None
    return Outcome(
        id=claim.id,
        attempt=claim.attempt,
        claimed_at=claim.claimed_at,
        handler=claim.handler,
        status=decided.status,
        reason=decided.reason,
        success=decided.success,
        payload=result.payload,
        payload_type=result.payload_type,
        extras=result.extras,
        spawn=result.spawn,
        error=result.error,
        stack=None if ignored else result.stack,
        exit_signal=result.exit_signal,
        exit_code=result.exit_code,
        run_at=claim.run_at,
        started_at=_store_time(claim, started_ns),
        finished_at=_store_time(claim, finished_ns),
        usage=result.usage,
        pid=pid,
        progress=result.progress,
        note=result.note,
        next=decided.next,
        next_run_us=_next_run_us(claim, decided.status, result, schedule),
        state=_state_after(claim, decided.status, state),
        request_id=claim.request_id,
        step=claim.step,
        name=claim.name,
        unique_key=claim.unique_key,
        limited=claim.limited,
        hold=_hold(claim, policy, result, rng),
        error_class=error_class,
        fingerprint=None if error_class is None else _fingerprint(claim, decided.reason, error_class, result),
    )


_CLASSES_WITHOUT_EXCEPTION = {
    "crashed": fingerprint.CRASHED,
    "oom": fingerprint.OUT_OF_MEMORY,
    "deadline": fingerprint.DEADLINE_EXCEEDED,
}


def _error_class(result: RunResult) -> str:
    if result.classes and result.kind not in ("crashed", "oom"):  # those of a program that died say nothing
        return fingerprint.public_name(result.classes[0])
    return _CLASSES_WITHOUT_EXCEPTION.get(result.kind, fingerprint.FAILURE)


def _fingerprint(claim: Claim, reason: Reason, error_class: str, result: RunResult) -> bytes:
    died = result.exit_signal is not None or result.exit_code is not None
    return fingerprint.fingerprint(
        claim.handler,
        reason,
        error_class,
        result.error or "",
        result.frames,
        f"{result.exit_signal} {result.exit_code}" if died and reason is Reason.CRASHED else "",
    )


def _hold(claim: Claim, policy: Policy, result: RunResult, rng: Callable[[], float]) -> Hold | None:
    """How long its group or limit is to wait too; None without a limit, which alone could."""
    if result.hold is None or claim.limited is None:
        return None
    seconds = result.after
    if seconds is None:
        seconds = backoff_pause(policy.backoff, claim.failures + 1, rng)
    return Hold(result.hold, _us(seconds))


def _store_time(claim: Claim, ns: int | None) -> int | None:
    return None if ns is None else clock.after(claim.claimed_at, claim.mono, ns)


def _state_after(claim: Claim, status: Status, state: bytes | None) -> bytes | None:
    if status is Status.COMPLETED:
        return None if state is None and claim.state is None else b""
    return state


def _next_run_us(
    claim: Claim, status: Status, result: RunResult, schedule: ScheduleConfig | None
) -> int | None:
    """Microseconds until the next run of a cooler; None if this row is not its chain, or remains live."""
    if schedule is None or schedule.cooler is None or claim.unique_key != COOLER_KEY or status not in ENDED:
        return None
    return _us(schedule.cooler if result.pause is None else result.pause)
