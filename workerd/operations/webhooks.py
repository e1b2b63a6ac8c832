"""Events for webhooks: jobs of the reserved handler, inserted by the transaction in which they happen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import msgspec

from workerd import documents
from workerd.config.model import Config
from workerd.config.webhook_config import WEBHOOK_HANDLER, WebhookConfig, WebhookEvent
from workerd.document_types import Document
from workerd.job import Status
from workerd.job_spec import NewJob
from workerd.messages import QuarantinedPool
from workerd.operations.requests import document_alone
from workerd.operations.rules import HandlerRules
from workerd.store import columns, errors, jobs
from workerd.store.base import Tx
from workerd.store.outcomes import ClosedBatch

MAX_VALUE_BYTES = 64 * 1024
"""Longest value of a job in a body, such as its vars; a longer one is left out."""
MAX_BODY_BYTES = 512 * 1024
"""A longer body is sent without the values in _LONG."""
_LONG = ("vars", "meta", "params", "extras", "stack", "state")
_NOUNS = {"failure": "job", "request_failed": "request", "new_error": "error", "quarantine": "pool"}


class WebhookEvents:
    """Inserts a delivery for each webhook that wants an event. Deliveries themselves send no events.

    Documents are those of every other way out, redacted by the same rules.
    """

    def __init__(self, config: Config) -> None:
        self._webhooks: Mapping[str, WebhookConfig] = config.webhooks
        self._handlers = {name: [h.name for h in pool.handlers] for name, pool in config.pools.items()}
        self._node = config.node.name
        self._rules = HandlerRules(config)

    def wants(self, event: WebhookEvent) -> bool:
        """Whether any webhook wants such events."""
        return any(event in webhook.on for webhook in self._webhooks.values())

    def after_close(self, tx: Tx, batch: ClosedBatch) -> None:
        """Send jobs that have failed for good, and new failures. Only inserts."""
        failed = [e.outcome for e in batch.ended if e.outcome.status is Status.FAILURE]
        wanted = [o for o in failed if self._names("failure", [o.handler])]
        rows = columns.jobs_by_key(tx, [o.ref for o in wanted], most=MAX_VALUE_BYTES) if wanted else {}
        new = []
        for outcome in wanted:
            if outcome.ref in rows:
                shown = documents.job(rows[outcome.ref], self._rules.of(tx, outcome.handler))
                new += self._deliveries(tx, "failure", [outcome.handler], shown)
        for fingerprint, handler in batch.new_errors:
            if self._names("new_error", [handler]):
                group = errors.find(tx, fingerprint)
                if group is not None:
                    shown = documents.error_group(group, tx.now)
                    new += self._deliveries(tx, "new_error", [handler], shown)
        if new:
            jobs.insert(tx, new)
            batch.woken.add(WEBHOOK_HANDLER)

    def before_commit(self, tx: Tx) -> None:
        """Send the requests that have failed in this transaction, whatever role ends them."""
        if not tx.failed_requests or not self.wants("request_failed"):
            return
        ids = sorted(set(tx.failed_requests))
        new = []
        for row in columns.requests_by_id(tx, ids):
            new += self._deliveries(tx, "request_failed", [], document_alone(tx, row, self._rules))
        if new:
            jobs.insert(tx, new)

    def quarantined(self, tx: Tx, pool: QuarantinedPool, incarnation: bytes) -> None:
        """Send a pool's quarantine once, however often this is called for it."""
        handlers = self._handlers.get(pool.name, [])
        shown = {"name": pool.name, "node": self._node, "handlers": handlers, "error": pool.error}
        key = f"{incarnation.hex()}/{pool.name}/{pool.life}"
        if new := self._deliveries(tx, "quarantine", handlers, shown, key):
            jobs.insert(tx, new)

    def _names(self, event: WebhookEvent, handlers: Iterable[str]) -> list[str]:
        """The webhooks that want this event of these handlers."""
        named = [handler for handler in handlers if handler != WEBHOOK_HANDLER]
        return [
            name
            for name, webhook in self._webhooks.items()
            if event in webhook.on
            and (event == "request_failed" or any(_matches(webhook, handler) for handler in named))
        ]

    def _deliveries(
        self, tx: Tx, event: WebhookEvent, handlers: Iterable[str], shown: Document, key: str = ""
    ) -> list[NewJob]:
        noun = _NOUNS[event]
        document: Document = {"event": event, "at": documents.moment(tx.now), noun: shown}
        body = msgspec.json.encode(document)
        if len(body) > MAX_BODY_BYTES:
            document[noun] = shown | {key: None for key in _LONG if key in shown}
            body = msgspec.json.encode(document)
        return [
            NewJob(
                handler=WEBHOOK_HANDLER,
                id=_id(f"{key}/{name}") if key else None,
                vars=msgspec.json.encode({"webhook": name, "body": body.decode()}),
                meta=msgspec.json.encode({"event": event}),
            )
            for name in self._names(event, handlers)
        ]


def _matches(webhook: WebhookConfig, handler: str) -> bool:
    return any(fnmatchcase(handler, pattern) for pattern in webhook.handlers)


def _id(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"webhook").digest()
