"""From a result to an outcome: rules, layers of a policy, backoff, coolers."""

from __future__ import annotations

import math
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd import policy as workerd_policy
from workerd.clock import SECOND
from workerd.config.handler_config import Backoff, HandlerConfig, Policy
from workerd.config.schedule_config import ScheduleConfig
from workerd.job import COOLER_KEY, Claim, Status, new_id
from workerd.outcome import NextAttempt, Reason, RunResult, Usage

EXACT = Backoff(jitter=0)


def claim(**more: Any) -> Claim:
    given = {
        "id": new_id(),
        "attempt": 1,
        "claimed_at": 1_000_000_000,
        "mono": 5_000_000_000,
        "handler": "h",
        "vars": b"{}",
        "run_at": 999_000_000,
    }
    return Claim(**(given | more))


def result(kind: Any, *classes: str, **more: Any) -> RunResult:
    return RunResult(serial=1, kind=kind, classes=classes, **more)


VALUE_ERROR = ("builtins.ValueError", "builtins.Exception", "builtins.BaseException")
SYSTEM_EXIT = ("builtins.SystemExit", "builtins.BaseException")

TABLE = [
    # result, policy, earlier attempts -> status, reason, success, next
    (result("returned"), {}, {}, "completed", "ok", True, None),
    (result("skipped"), {}, {}, "completed", "skipped", None, None),
    (result("failed"), {}, {}, "failure", "failure", False, None),
    (result("failure"), {}, {}, "failure", "failure", False, None),
    (result("cancelled"), {}, {}, "cancelled", "cancelled", None, None),
    (result("retry"), {}, {}, "retry", "retry", False, NextAttempt(1 * SECOND, 1, 0, 0)),
    (result("retry", after=7.5), {}, {}, "retry", "retry", False, NextAttempt(7_500_000, 1, 0, 0)),
    (result("retry", after=0.0), {}, {"failures": 3}, "retry", "retry", False, NextAttempt(0, 4, 0, 0)),
    (result("retry", after=7.5), {}, {"failures": 4}, "failure", "retry", False, None),
    (
        result("retry", after=7.5, counted=False),
        {},
        {"failures": 4, "crashes": 1},
        "retry",
        "retry",
        False,
        NextAttempt(7_500_000, 4, 1, 0),
    ),
    (result("raised", *VALUE_ERROR), {}, {}, "retry", "error", False, NextAttempt(1 * SECOND, 1, 0, 0)),
    (
        result("raised", *VALUE_ERROR),
        {},
        {"failures": 2},
        "retry",
        "error",
        False,
        NextAttempt(4 * SECOND, 3, 0, 0),
    ),
    (result("raised", *VALUE_ERROR), {}, {"failures": 4}, "failure", "error", False, None),
    (result("raised", *VALUE_ERROR), {"ignore": ("ValueError",)}, {}, "completed", "ignored", True, None),
    (result("raised", *VALUE_ERROR), {"fail_on": ("Exception",)}, {}, "failure", "error", False, None),
    (result("raised", *VALUE_ERROR), {"retry_on": ("KeyError",)}, {}, "failure", "error", False, None),
    (result("raised", *SYSTEM_EXIT), {}, {}, "failure", "error", False, None),
    (result("raised", *SYSTEM_EXIT), {"retry_on": ("BaseException",)}, {}, "failure", "error", False, None),
    (result("deadline"), {}, {}, "retry", "deadline", False, NextAttempt(1 * SECOND, 1, 0, 0)),
    (result("deadline"), {"retry_on": ()}, {}, "retry", "deadline", False, NextAttempt(1 * SECOND, 1, 0, 0)),
    (result("deadline"), {}, {"failures": 4}, "failure", "deadline", False, None),
    (result("deadline"), {"fail_on": ("DeadlineExceeded",)}, {}, "failure", "deadline", False, None),
    (result("deadline"), {"fail_on": ("workerd.DeadlineExceeded",)}, {}, "failure", "deadline", False, None),
    (
        result("deadline"),
        {"fail_on": ("Exception",)},
        {},
        "retry",
        "deadline",
        False,
        NextAttempt(SECOND, 1, 0, 0),
    ),
    (result("crashed"), {}, {"failures": 4}, "retry", "crashed", False, NextAttempt(1 * SECOND, 4, 1, 0)),
    (result("crashed"), {}, {"crashes": 2}, "failure", "crashed", False, None),
    (result("oom"), {}, {"crashes": 1, "losses": 2}, "retry", "oom", False, NextAttempt(2 * SECOND, 0, 2, 2)),
    (result("oom"), {"max_crashes": 1}, {}, "failure", "oom", False, None),
    (
        result("interrupted"),
        {"max_attempts": 1, "max_crashes": 1},
        {"failures": 4, "crashes": 1, "losses": 9},
        "retry",
        "interrupted",
        None,
        NextAttempt(0, 4, 1, 9),
    ),
]


@pytest.mark.parametrize(("how", "policy", "before", "status", "reason", "success", "following"), TABLE)
def test_each_result_has_its_decision(
    how: RunResult,
    policy: dict[str, Any],
    before: dict[str, int],
    status: str,
    reason: str,
    success: bool | None,
    following: NextAttempt | None,
) -> None:
    """Every row of the table above."""
    decided = workerd_policy.decision(Policy(backoff=EXACT, **policy), claim(**before), how)
    assert decided == (status, reason, success, following)


def test_every_kind_of_result_has_a_rule() -> None:
    """No worker or pool can send another one."""
    assert set(get_args(get_type_hints(RunResult)["kind"])) == set(workerd_policy.RULES)


def test_ignore_precedes_fail_on_and_fail_on_retry_on() -> None:
    """The first list that names the class decides."""
    lists = {"ignore": ("LookupError",), "fail_on": ("KeyError",), "retry_on": ("Exception",)}
    classes = ("builtins.KeyError", "builtins.LookupError", "builtins.Exception")
    assert workerd_policy.match_policy(Policy(**lists), classes, {}) == "ignore"
    assert workerd_policy.match_policy(Policy(**(lists | {"ignore": ()})), classes, {}) == "fail"
    assert (
        workerd_policy.match_policy(Policy(**(lists | {"ignore": (), "fail_on": ()})), classes, {}) == "retry"
    )


def test_a_class_is_matched_by_its_real_path() -> None:
    """A name from which it is re-exported matches too."""
    policy = Policy(fail_on=("json.JSONDecodeError",))
    classes = ("json.decoder.JSONDecodeError", *VALUE_ERROR)
    aliases = {"json.JSONDecodeError": "json.decoder.JSONDecodeError"}
    assert workerd_policy.match_policy(policy, classes, aliases) == "fail"
    assert workerd_policy.match_policy(policy, classes, {}) == "retry"


def test_max_attempts_given_at_enqueue_overrides_the_policy() -> None:
    """More or fewer."""
    once = workerd_policy.decide(Policy(), claim(max_attempts=1), result("raised", *VALUE_ERROR))
    assert (once.status, once.next) == (Status.FAILURE, None)
    more = workerd_policy.decide(Policy(), claim(max_attempts=9, failures=6), result("raised", *VALUE_ERROR))
    assert more.status is Status.RETRY


# -- layers


def test_policy_layers_override_each_other_in_order() -> None:
    """Built-in, defaults, decorator, own table."""
    handler = HandlerConfig(
        name="h",
        call="m:f",
        pool="h",
        policy_defaults={"max_attempts": 2, "grace": 3.0, "deadline": 1.0},
        policy_own={"deadline": 9.0},
    )
    policy = workerd_policy.effective(handler, {"grace": 4.0, "deadline": 5.0, "backoff": {"first": 2.0}})
    assert (policy.max_attempts, policy.grace, policy.deadline) == (2, 4.0, 9.0)
    assert policy.backoff == Backoff(first=2.0)
    assert policy.max_crashes == Policy().max_crashes


def test_a_recurring_handler_has_one_attempt_unless_its_table_has_more() -> None:
    """Its next run is the retry."""
    schedule = ScheduleConfig(cooler=30.0)
    handler = HandlerConfig(
        name="h", call="m:f", pool="h", schedule=schedule, policy_defaults={"max_attempts": 7}
    )
    policy = workerd_policy.effective(handler, {"max_crashes": 8})
    assert (policy.max_attempts, policy.max_crashes) == (1, 1)
    own = HandlerConfig(name="h", call="m:f", pool="h", schedule=schedule, policy_own={"max_attempts": 3})
    assert (
        workerd_policy.effective(own, {}).max_attempts,
        workerd_policy.effective(own, {}).max_crashes,
    ) == (3, 1)


def test_a_job_of_a_recurring_workflow_has_one_attempt() -> None:
    """Although its handler does not recur."""
    handler = HandlerConfig(name="h", call="m:f", pool="h")
    assert workerd_policy.effective(handler, {}, recurring=True).max_attempts == 1
    assert workerd_policy.effective(handler, {}).max_attempts == Policy().max_attempts


# -- backoff


@given(
    first=st.floats(0, 1e6),
    factor=st.floats(1, 1000),
    longest=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
    nth=st.integers(1, 1_000_000),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_backoff_stays_within_its_bounds(
    first: float, factor: float, longest: float, jitter: float, nth: int, chance: float
) -> None:
    """At most `max`, at least what jitter leaves, whatever the numbers."""
    backoff = Backoff(first=first, factor=factor, max=longest, jitter=jitter)
    seconds = workerd_policy.backoff_pause(backoff, nth, lambda: chance)
    full = workerd_policy.backoff_pause(backoff, nth, lambda: 0.0)
    assert 0 <= seconds <= full <= longest
    assert seconds >= full * (1 - jitter) * (1 - 1e-9)
    assert math.isfinite(seconds)


@given(nth=st.integers(1, 200))
def test_backoff_grows_up_to_its_maximum(nth: int) -> None:
    """Without jitter it never shrinks."""
    backoff = Backoff(jitter=0)
    first, second = (workerd_policy.backoff_pause(backoff, n) for n in (nth, nth + 1))
    assert first <= second <= backoff.max


def test_a_pause_beyond_the_stores_dates_is_cut() -> None:
    """`Retry(after=…)` with an absurd number still has a date."""
    decided = workerd_policy.decision(Policy(), claim(), result("retry", after=1e300))
    assert decided.next is not None
    assert decided.next.delay_us == round(workerd_policy.MAX_PAUSE_S * SECOND)


# -- losses


def test_the_pause_doubles_with_each_loss_up_to_ten_losses() -> None:
    """1, 2, 4 … at most 60 s; the tenth loss is a failure."""
    pauses = []
    for losses in range(9):
        following = workerd_policy.next_after_loss(claim(losses=losses, failures=1, crashes=2))
        assert following is not None
        assert (following.failures, following.crashes, following.losses) == (1, 2, losses + 1)
        pauses.append(following.delay_us / SECOND)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert workerd_policy.next_after_loss(claim(losses=9)) is None


# -- the whole outcome


def test_an_outcome_has_its_attempt_and_the_result() -> None:
    """Times are store times: the claim's plus monotonic differences (law 8)."""
    how = result(
        "returned",
        payload=b"1",
        payload_type="json",
        extras=b"{}",
        usage=Usage(1, 2, 3),
        progress=0.5,
        note="half",
    )
    made = claim(request_id=b"r" * 16, step=2, name="resize", unique_key="k")
    out = workerd_policy.decide(
        Policy(),
        made,
        how,
        started_ns=5_000_002_000,
        finished_ns=5_000_007_999,
        pid=42,
        schedule=ScheduleConfig(),
    )
    assert out.ref == made.ref
    assert (out.claimed_at, out.started_at, out.finished_at) == (1_000_000_000, 1_000_000_002, 1_000_000_007)
    assert (out.status, out.reason, out.success) == (Status.COMPLETED, Reason.OK, True)
    assert (out.payload, out.payload_type, out.extras, out.pid) == (b"1", "json", b"{}", 42)
    assert (out.usage, out.progress, out.note) == (Usage(1, 2, 3), 0.5, "half")
    assert (out.request_id, out.step, out.name, out.unique_key) == (b"r" * 16, 2, "resize", "k")
    assert out.next_run_us is None


def test_an_unstarted_attempt_has_no_times() -> None:
    """As one that was cancelled while it waited."""
    out = workerd_policy.decide(Policy(), claim(), result("cancelled"))
    assert (out.started_at, out.finished_at, out.pid) == (None, None, None)


def test_an_ignored_error_keeps_its_line_and_no_stack() -> None:
    """It is a success."""
    how = result("raised", *VALUE_ERROR, error="ValueError: x", stack="Traceback")
    out = workerd_policy.decide(Policy(ignore=("ValueError",)), claim(), how)
    assert (out.error, out.stack) == ("ValueError: x", None)


CHAIN = ScheduleConfig(cooler=30.0)


@pytest.mark.parametrize(
    ("how", "key", "schedule", "again"),
    [
        (result("returned"), COOLER_KEY, CHAIN, 30 * SECOND),
        (result("returned", pause=2.5), COOLER_KEY, CHAIN, 2_500_000),
        (result("returned", pause=0.0), COOLER_KEY, CHAIN, 0),
        (result("skipped"), COOLER_KEY, CHAIN, 30 * SECOND),
        (result("cancelled"), COOLER_KEY, CHAIN, 30 * SECOND),
        (result("crashed"), COOLER_KEY, CHAIN, 30 * SECOND),
        (result("interrupted"), COOLER_KEY, CHAIN, None),  # its next attempt is the chain
        (result("returned"), None, CHAIN, None),
        (result("returned"), COOLER_KEY, ScheduleConfig(), None),
        (result("returned", pause=1.0), COOLER_KEY, ScheduleConfig(cron="* * * * *"), None),
    ],
)
def test_a_coolers_chain_continues_from_its_row(
    how: RunResult, key: str | None, schedule: ScheduleConfig, again: int | None
) -> None:
    """Only the row with the reserved key, only when it has ended, only with a cooler."""
    out = workerd_policy.decide(Policy(max_crashes=1), claim(unique_key=key), how, schedule=schedule)
    assert out.next_run_us == again
