"""Look up, list, resolve and mute error groups."""

from __future__ import annotations

from typing import NamedTuple

from workerd import documents
from workerd.clock import SECOND
from workerd.document_types import Document
from workerd.job import AttemptRef
from workerd.operations import audit
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.store import columns, errors
from workerd.store.base import Tx

MAX_MUTE_S = 3650 * 86400.0


class ErrorPage(NamedTuple):
    """A page of a list; `next`: the cursor of the following one, None at the end."""

    errors: list[Document]
    next: str | None


def list_(
    tx: Tx,
    *,
    handler: str | None = None,
    since: int | None = None,
    everything: bool = False,
    limit: int = 50,
    after: str | None = None,
) -> ErrorPage:
    """Open groups, the one that failed last first; with `everything`, resolved and muted ones too.

    `since`: a store time in microseconds after which they failed. Raises InvalidValue for a wrong cursor.
    """
    page = errors.list_(tx, handler=handler, since=since, everything=everything, limit=limit, after=after)
    return ErrorPage([documents.error_group(row, tx.now) for row in page.rows], page.next)


def get(tx: Tx, fingerprint: bytes) -> Document:
    """One group, with the `stack` of its newest failure if that still exists. Raises NotFound."""
    row = errors.get(tx, fingerprint)
    ref = AttemptRef(row.job_id, row.attempt)
    newest = columns.jobs_by_key(tx, [ref]).get(ref)
    return {**documents.error_group(row, tx.now), "stack": None if newest is None else newest.stack}


def resolve(tx: Tx, actor: Actor, fingerprint: bytes) -> Document:
    """Close a group until it fails again; one that is closed stays as it is. Raises NotFound."""
    if errors.resolve(tx, fingerprint, actor.name):
        audit.record(tx, actor, Action.ERROR_RESOLVE, fingerprint.hex())
    return get(tx, fingerprint)


def mute(tx: Tx, actor: Actor, fingerprint: bytes, seconds: float) -> Document:
    """Leave a group out of lists, metric and webhooks for so long; it counts on. Raises NotFound."""
    until = tx.now + round(min(seconds, MAX_MUTE_S) * SECOND)
    errors.mute(tx, fingerprint, until)
    audit.record(tx, actor, Action.ERROR_MUTE, fingerprint.hex(), {"until": documents.moment(until)})
    return get(tx, fingerprint)
