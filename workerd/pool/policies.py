"""The effective policies of a pool's handlers: only the pool knows the options of their decorators."""

from __future__ import annotations

import msgspec

from workerd import policy
from workerd.config.handler_config import HandlerConfig, Policy, PoolConfig
from workerd.config.model import Config
from workerd.job import Claim
from workerd.outcome import Outcome, RunResult
from workerd.pool.worker_messages import HandlerSpec


class Policies:
    """Policies by handler, for plain jobs and for jobs of a recurring workflow."""

    def __init__(self, config: Config, pool: PoolConfig) -> None:
        self._handlers: dict[str, HandlerConfig] = {handler.name: handler for handler in pool.handlers}
        self._recurring_workflows = frozenset(
            name for name, workflow in config.workflows.items() if workflow.schedule.cooler is not None
        )
        self._plain: dict[str, Policy] = {}
        self._recurring: dict[str, Policy] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        for handler in pool.handlers:
            self._learn(handler, HandlerSpec(name=handler.name, options={}, signature=None, aliases={}))

    def learn(self, specs: list[HandlerSpec]) -> None:
        """Apply the decorators' options of handlers that were loaded."""
        for spec in specs:
            if spec.name in self._handlers:
                self._learn(self._handlers[spec.name], spec)

    def _learn(self, handler: HandlerConfig, spec: HandlerSpec) -> None:
        self._plain[handler.name] = policy.effective(handler, spec.options)
        self._recurring[handler.name] = policy.effective(handler, spec.options, recurring=True)
        self._aliases[handler.name] = spec.aliases

    def __contains__(self, handler: str) -> bool:
        return handler in self._plain

    def of(self, claim: Claim) -> Policy:
        """The policy of this claim. Raises KeyError for a handler of another pool."""
        if claim.workflow is not None and claim.workflow in self._recurring_workflows:
            return self._recurring[claim.handler]
        return self._plain[claim.handler]

    def decide(
        self,
        claim: Claim,
        result: RunResult,
        *,
        started_ns: int | None = None,
        finished_ns: int | None = None,
        pid: int | None = None,
        cancelled: bool = False,
        state: bytes | None = None,
    ) -> Outcome:
        """The outcome of this result, under the claim's policy; times are monotonic nanoseconds.

        `cancelled`: a cancel was requested while it ran, so it is not retried however it ended. `state`: what
        it saved.
        """
        outcome = policy.decide(
            self.of(claim),
            claim,
            result,
            aliases=self._aliases[claim.handler],
            started_ns=started_ns,
            finished_ns=finished_ns,
            pid=pid,
            schedule=self._handlers[claim.handler].schedule,
            state=state,
        )
        if cancelled and outcome.next is not None:
            result = msgspec.structs.replace(result, kind="cancelled")
            return self.decide(
                claim, result, started_ns=started_ns, finished_ns=finished_ns, pid=pid, state=state
            )
        return outcome
