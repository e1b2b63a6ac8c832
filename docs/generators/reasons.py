"""The page of statuses and reasons."""

from __future__ import annotations

from workerd.outcome import Reason

REASONS: dict[Reason, tuple[str, str]] = {
    Reason.OK: ("completed", "The handler returned."),
    Reason.IGNORED: ("completed", "It raised an exception that `ignore` names."),
    Reason.SKIPPED: ("completed", "`active()` of the handler returned false: nothing to do."),
    Reason.RETRY: ("retry, failure", "It raised `Retry`; or a program exited with one of `retry_codes`."),
    Reason.ERROR: (
        "retry, failure",
        "It raised an exception; `retry_on`, `fail_on` and `max_attempts` decide.",
    ),
    Reason.FAILURE: (
        "failure",
        "It raised `Failure` or returned `Result(success=False)`, or its vars do not fit.",
    ),
    Reason.REFUSED: ("failure", "The store refused the outcome of the attempt; its error says why."),
    Reason.DEADLINE: (
        "retry, failure",
        "It exceeded its deadline: `DeadlineExceeded`, then killed after `grace`.",
    ),
    Reason.CRASHED: (
        "retry, failure",
        "Its worker died (signal or exit). At most `max_crashes` times.",
    ),
    Reason.OOM: ("retry, failure", "It used more memory than allowed. Counts as a crash."),
    Reason.LOST: ("retry, failure", "Its pool or node died, so it may have run. At most ten times."),
    Reason.INTERRUPTED: ("retry", "The node or the pool stopped before it had finished. Uses no attempt."),
    Reason.EXPIRED: ("cancelled", "It had not started in time: `expires`."),
    Reason.CANCELLED: ("cancelled", "It was cancelled, or its request ended."),
}

_HEAD = """# Statuses and reasons

`status` is the state of an attempt, `reason` how it ended.

| status | |
|---|---|
| `scheduled` | due at `run_at` |
| `new` | waits to be claimed |
| `inprogress` | claimed by a node, and running or about to |
| `completed` | ended successfully, or was skipped |
| `retry` | this attempt ended, and the next one has its own row |
| `failure` | ended without success, and is not retried |
| `cancelled` | ended before it was finished |

| reason | status | |
|---|---|---|
"""


def page() -> str:
    """Every reason."""
    rows = (f"| `{reason}` | {REASONS[reason][0]} | {REASONS[reason][1]} |" for reason in Reason)
    return (
        _HEAD
        + "\n".join(rows)
        + "\n\n`workerd why ID` says the same about one job in sentences, with what to do next.\n"
    )
