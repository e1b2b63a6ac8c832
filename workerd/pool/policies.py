"""The effective policy of every claim that this pool may get: the pool alone has what the decorators say."""

from __future__ import annotations

from workerd import policy
from workerd.config.model import Config, HandlerConfig, Policy, PoolConfig
from workerd.job import Claim
from workerd.messages import HandlerSpec
from workerd.outcome import Outcome, RunResult


class Policies:
    """Policies by handler, once for plain jobs and once for those of a recurring workflow."""

    def __init__(self, config: Config, pool: PoolConfig) -> None:
        self._handlers: dict[str, HandlerConfig] = {handler.name: handler for handler in pool.handlers}
        self._recurring = frozenset(
            name for name, workflow in config.workflows.items() if workflow.schedule.cooler is not None
        )
        self._plain: dict[str, Policy] = {}
        self._single: dict[str, Policy] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        for handler in pool.handlers:
            self._learn(handler, HandlerSpec(name=handler.name, options={}, signature=None, aliases={}))

    def learn(self, specs: list[HandlerSpec]) -> None:
        """Take over what loading the handlers told."""
        for spec in specs:
            if spec.name in self._handlers:
                self._learn(self._handlers[spec.name], spec)

    def _learn(self, handler: HandlerConfig, spec: HandlerSpec) -> None:
        self._plain[handler.name] = policy.effective(handler, spec.options)
        self._single[handler.name] = policy.effective(handler, spec.options, recurring=True)
        self._aliases[handler.name] = spec.aliases

    def __contains__(self, handler: str) -> bool:
        return handler in self._plain

    def of(self, claim: Claim) -> Policy:
        """The policy of this claim; KeyError for a handler of another pool."""
        if claim.workflow is not None and claim.workflow in self._recurring:
            return self._single[claim.handler]
        return self._plain[claim.handler]

    def settle(
        self,
        claim: Claim,
        ending: RunResult,
        *,
        started_ns: int | None = None,
        finished_ns: int | None = None,
        pid: int | None = None,
    ) -> Outcome:
        """What this ending makes of the claim's row."""
        return policy.settle(
            claim,
            ending,
            self.of(claim),
            aliases=self._aliases[claim.handler],
            started_ns=started_ns,
            finished_ns=finished_ns,
            pid=pid,
            schedule=self._handlers[claim.handler].schedule,
        )
