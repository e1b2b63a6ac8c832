"""Ends of attempts, on their way to the ingester."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from workerd import log as logging
from workerd.job import Claim, id_text
from workerd.log import get_logger
from workerd.outcome import Outcome, RunResult, released
from workerd.pool import job_trace
from workerd.pool.attempt import AssignedAttempt
from workerd.pool.known_handlers import KnownHandlers
from workerd.pool.policies import Policies
from workerd.pool.scrubbing import scrubbed_note, scrubber_of_results
from workerd.pool.state_relay import StateRelay
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.tracing.context import trace_of

_CANCELLED_BEFORE_START = RunResult(serial=0, kind="cancelled", error="It was cancelled before it started.")

_log = get_logger("pool")


class Endings:
    """Makes exactly one outcome of each claim. `counts`: by reason. `traced`: outcomes carry the trace."""

    def __init__(
        self,
        outcome_sender: OutcomeSender,
        policies: Policies,
        handlers: KnownHandlers,
        state_relay: StateRelay,
        *,
        traced: bool,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._outcome_sender = outcome_sender
        self._policies = policies
        self._handlers = handlers
        self._state_relay = state_relay
        self._traced = traced
        self._warned_of_holds: set[str] = set()

    def close_attempt(self, attempt: AssignedAttempt, result: RunResult, pid: int, now_ns: int) -> None:
        """The run of this attempt in the worker `pid` ended so."""
        if result.hold is not None and attempt.claim.limited is None:
            self._warn_of_hold(attempt.claim)
        started = attempt.started_ns(result, now_ns)
        outcome = self._policies.decide(
            attempt.claim, result, started_ns=started, finished_ns=now_ns, pid=pid,
            cancelled=attempt.cancelled, state=attempt.state,
        )  # fmt: skip
        if self._traced:
            outcome = msgspec.structs.replace(outcome, trace=result.trace or trace_of(attempt.claim.meta))
        self._send(self._with_texts(outcome, attempt))
        self._state_relay.forget(attempt)

    def _with_texts(self, outcome: Outcome, attempt: AssignedAttempt) -> Outcome:
        """The outcome with note and log, where values that the handler has returned since are redacted."""
        if attempt.log is None and outcome.note is None:
            return outcome
        redaction = self._handlers.redaction_of(outcome.handler)
        if not redaction:
            return attempt.with_log(outcome)
        scrub = scrubber_of_results(redaction, outcome)
        return attempt.with_log(scrubbed_note(outcome, scrub), scrub)

    def _warn_of_hold(self, claim: Claim) -> None:
        if claim.handler not in self._warned_of_holds:
            self._warned_of_holds.add(claim.handler)
            _log.warning("hold.ignored", handler=claim.handler, job=id_text(claim.id))

    def close(self, claim: Claim, result: RunResult) -> None:
        """It did not run, and this is why."""
        self._send(self._policies.decide(claim, result))

    def cancel(self, claim: Claim) -> None:
        """It was cancelled before it ran."""
        self.close(claim, _CANCELLED_BEFORE_START)

    def release(self, claims: Iterable[Claim]) -> None:
        """None of these has run, nor will here."""
        for claim in claims:
            self._outcome_sender.send(released(claim))

    def _send(self, outcome: Outcome) -> None:
        self._outcome_sender.send(outcome)
        self.counts[outcome.reason or ""] += 1
        if logging.debugging:
            job_trace.ended(outcome)
        if outcome.success is False:
            _log.warning(
                "attempt.failed", handler=outcome.handler, job=id_text(outcome.id), attempt=outcome.attempt,
                reason=outcome.reason, status=outcome.status, error=outcome.error,
            )  # fmt: skip
