"""One attempt in a worker's hands, and how it ended when the worker could not say so itself."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Literal

from workerd.config.model import Policy
from workerd.job import Claim
from workerd.outcome import Ending, Usage
from workerd.pool.fds import SOFT_SIGNAL
from workerd.pool.states import Verdict

_PACKAGE = f'File "{Path(__file__).parent}/'


class Run:
    """A claim that was given to a worker.

    `deadline`, `grace`: seconds, deadline 0 for none. `start_ns`: CLOCK_MONOTONIC, when it was given, or
    when the one before it was seen to have ended. `hard`: monotonic seconds after which the worker is
    killed. `cause`: why it is being interrupted. `cancelled`: somebody asked for its end, so that it is
    not tried again, however it ends.
    """

    __slots__ = (
        "cancelled", "cause", "changed", "claim", "deadline", "grace", "hard", "note", "peak_kib", "policy",
        "progress", "serial", "stack", "start_ns", "told_ns",
    )  # fmt: skip

    def __init__(self, serial: int, claim: Claim, policy: Policy, start_ns: int) -> None:
        self.serial = serial
        self.claim = claim
        self.policy = policy
        own = claim.deadline_ms
        self.deadline = policy.deadline if own is None else own / 1000
        self.grace = policy.grace
        self.start(start_ns)
        self.cause = Verdict.NONE
        self.cancelled = False
        self.progress: float | None = None
        self.note: str | None = None
        self.changed = True
        self.told_ns = 0
        self.stack: str | None = None
        self.peak_kib: int | None = None

    def start(self, now_ns: int) -> None:
        """It begins now: its deadlines count from here."""
        self.start_ns = now_ns
        self.hard = now_ns / 1e9 + self.deadline + self.grace if self.deadline > 0 else math.inf

    def began_ns(self, ending: Ending, now_ns: int) -> int:
        """When it began, as far as its ending tells: the pool hears late of one that lay ahead."""
        run_us = ending.usage.run_us
        return self.start_ns if run_us is None else min(self.start_ns, now_ns - run_us * 1000)

    @property
    def soft_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of the soft deadline, 0 for none."""
        return self.start_ns + int(self.deadline * 1e9) if self.deadline > 0 else 0


def ending_of_death(run: Run, status: int, verdict: Verdict, now_ns: int, memory_max: int = 0) -> Ending:
    """How the attempt ended whose worker is dead: by the wait status, unless the pool killed it.

    `status`: exit code, or a negative signal number.
    """
    if verdict is Verdict.NONE and status == -SOFT_SIGNAL:
        # A handler that put the signal's default disposition back dies of it.
        verdict = run.cause
    kind, error = _KINDS.get(verdict) or ("crashed", death_sentence(status, verdict))
    if verdict is Verdict.DEADLINE:
        error = f"It still ran {run.grace:g} s after its deadline of {run.deadline:g} s and was killed."
    elif verdict is Verdict.OOM:
        error = f"It used {run.peak_kib or 0} KiB of memory, its limit is {memory_max // 1024} KiB."
    return Ending(
        serial=run.serial,
        kind=kind,
        error=error,
        stack=run.stack,
        exit_signal=-status if status < 0 else None,
        exit_code=status if status >= 0 else None,
        usage=Usage(run_us=max(0, now_ns - run.start_ns) // 1000, max_rss_kib=run.peak_kib),
        progress=run.progress,
        note=run.note,
    )


_Kind = Literal["deadline", "cancelled", "interrupted", "oom", "crashed"]

_KINDS: dict[Verdict, tuple[_Kind, str]] = {
    Verdict.DEADLINE: ("deadline", ""),
    Verdict.OOM: ("oom", ""),
    Verdict.CANCELLED: ("cancelled", "It was cancelled while it ran and did not end by itself."),
    Verdict.INTERRUPTED: ("interrupted", "The daemon stopped before it had finished."),
}


def death_sentence(status: int, verdict: Verdict = Verdict.NONE) -> str:
    """What a person reads of a worker that died with this wait status."""
    if verdict is Verdict.FAULT:
        return "The worker broke its channel to the pool, which a handler must leave alone, and was killed."
    if verdict is Verdict.LOAD_TIMEOUT:
        return "The worker was not ready within `load_timeout` and was killed."
    if verdict is Verdict.NOT_READY:
        return "The worker could not load its handlers or `init`."
    if status < 0:
        return f"The worker was killed by {signal_name(-status)}."
    return f"The worker ended with exit code {status}."


def signal_name(number: int) -> str:
    """SIGSEGV for 11; the number itself where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def trim(dump: str) -> str:
    """The dump without the pool's own frames below the handler's."""
    kept, skipping = [], False
    for line in dump.splitlines():
        if not line.startswith("  "):
            skipping = False
        elif _PACKAGE in line:
            skipping = True
        if not skipping:
            kept.append(line)
    return "\n".join(kept)
