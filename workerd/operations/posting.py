"""Enqueue plain jobs from an event loop, on a connection that needs no thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workerd.config.model import Config
from workerd.document_types import Document, Enqueued
from workerd.documents import moment
from workerd.errors import StoreError, WorkerdError
from workerd.job import new_id
from workerd.job_spec import NewJob
from workerd.operations import jobs
from workerd.operations.enqueue import KnownHandlers, is_plain
from workerd.operations.rules import HandlerRules
from workerd.redaction import Redaction
from workerd.store import jobs as stored_jobs

if TYPE_CHECKING:
    from workerd.store.mysql_posting import Posting as Posting


def redactions(
    specs: Sequence[NewJob], known: KnownHandlers, rules: HandlerRules, config: Config
) -> list[Redaction] | None:
    """What is redacted in each of these jobs, if all may be enqueued without a question to the store."""
    if not known.is_recent or not all(
        is_plain(spec, config) and known.admits(spec, config) for spec in specs
    ):
        return None
    found = [rules.recent(spec.handler) for spec in specs]
    complete = [redaction for redaction in found if redaction is not None]
    return complete if len(complete) == len(found) else None


class TimeHidden(WorkerdError):
    """The jobs were made, but the answer does not tell when: a trigger of the table hides it.

    `ids`: of the jobs.
    """

    def __init__(self, ids: Sequence[bytes]) -> None:
        super().__init__()
        self.ids = ids


class PostedJobs:
    """Plain jobs on their way to the store: once that is readable, `receive` may have the answer.

    Raises StoreError where they cannot be sent: then nothing was done.
    """

    _created: list[tuple[Enqueued, Document]]
    """Set by `prepare`."""

    def __init__(self, posting: Posting, specs: Sequence[NewJob], redacted: Sequence[Redaction]) -> None:
        self._posting = posting
        self._ids = [new_id() for _ in specs]
        posting.send(*stored_jobs.posted_insert(specs, self._ids, posting.first_attempt))
        self._specs = specs
        self._redacted = redacted

    def prepare(self) -> None:
        """Make what `receive` returns as far as it is known without the answer: all but the time."""
        each = zip(self._specs, self._ids, self._redacted, strict=True)
        self._created = [
            jobs.created(stored_jobs.row_of(spec, job_id, 0), redaction) for spec, job_id, redaction in each
        ]

    def receive(self) -> list[tuple[Enqueued, Document]] | None:
        """Each job and its document, after `prepare`; None before the answer is complete.

        Raises TimeHidden, CommitUnknown with all ids, or another StoreError after which nothing was done.
        """
        now = self._posting.receive(self._ids)
        if now is None:
            return None
        if now == 0:
            raise TimeHidden(self._ids)
        made = moment(now)
        return [(done, {**document, "run_at": made, "created_at": made}) for done, document in self._created]

    def lost(self) -> StoreError:
        """The error of an answer that has not come in time: CommitUnknown."""
        return self._posting.lost(self._ids)
