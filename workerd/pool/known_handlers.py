"""What the pool knows of its handlers once they are loaded."""

from __future__ import annotations

from workerd.config.model import Config
from workerd.log import get_logger
from workerd.pool import loading
from workerd.pool.attempt import AssignedAttempt
from workerd.pool.policies import Policies
from workerd.pool.scrubbing import scrubber_of_claim
from workerd.pool.worker_messages import HandlerSpec
from workerd.redaction import NOTHING, Redaction, Scrubber
from workerd.signature import redaction_of

_log = get_logger("pool")


class KnownHandlers:
    """Policies, redactions and files of the loaded handlers. `stale`: a file changed since it was loaded."""

    def __init__(self, config: Config, policies: Policies) -> None:
        self.stale = False
        self._config = config
        self._policies = policies
        self._warned: set[str] = set()  # handlers whose class has cooler()
        self._redactions: dict[str, Redaction] = {}  # of handlers that have any
        self._sources: dict[str, int] = {}

    def learn(self, specs: list[HandlerSpec], sources: dict[str, int]) -> None:
        """These were loaded, from files that had changed at these times, in nanoseconds."""
        self._policies.learn(specs)
        self._redactions |= {spec.name: found for spec in specs if (found := redaction_of(spec.signature))}
        for name in {spec.name for spec in specs if spec.has_cooler} - self._warned:
            self._warned.add(name)
            if loading.lacks_cooler_key(name, self._config):
                _log.warning("handler.not_recurring", handler=name, error=loading.NO_COOLER_KEY)
        for file, changed_at in sources.items():
            # The oldest counts: a worker that was forked later may have imported newer code than the others.
            self._sources[file] = min(changed_at, self._sources.get(file, changed_at))

    def look(self) -> None:
        """Check whether a file has changed."""
        self.stale = loading.changed(self._sources)

    def redaction_of(self, handler: str) -> Redaction:
        """What is redacted in its jobs."""
        return self._redactions.get(handler, NOTHING)

    def scrubber_of(self, attempt: AssignedAttempt) -> Scrubber | None:
        """What removes the values of this attempt that are not to be shown; None where it has none."""
        redaction = self.redaction_of(attempt.claim.handler)
        if not redaction:
            return None
        if attempt.scrubber is None:
            attempt.scrubber = scrubber_of_claim(redaction, attempt.claim)
        return attempt.scrubber
