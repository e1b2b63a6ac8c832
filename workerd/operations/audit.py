"""Record who changed what, in the transaction of the change; list it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from workerd import documents
from workerd.document_types import Document
from workerd.operations.actor import Actor
from workerd.redaction import REDACTED
from workerd.store import audit
from workerd.store.base import Tx

MAX_ACTS_OF_JOB = 50
"""Acts on one job that are shown with it."""


class Action(StrEnum):
    """What was done."""

    CANCEL = "cancel"
    RETRY = "retry"
    EDIT = "edit"
    PAUSE = "pause"
    RESUME = "resume"
    UNHOLD = "unhold"
    SCHEDULE_SET = "schedule.set"
    SCHEDULE_REMOVE = "schedule.remove"
    SCHEDULE_RUN = "schedule.run"
    ERROR_RESOLVE = "error.resolve"
    ERROR_MUTE = "error.mute"
    REVEAL = "reveal"
    SIGNAL = "signal"


class AuditPage(NamedTuple):
    """A page of a list; `next`: the cursor of the following one, None at the end."""

    audit: list[Document]
    next: str | None


def record(tx: Tx, actor: Actor, action: Action, target: str | None, detail: Any = None) -> None:
    """Record an act in its own transaction: if this cannot be written, nothing was done.

    `target`: the id, name or fingerprint; of an act on many jobs their handler, or None. `detail`: a JSON
    value without anything that is to be redacted.
    """
    audit.insert(
        tx,
        actor=actor.name,
        role=str(actor.role),
        via=actor.via,
        action=str(action),
        target=target,
        detail=None if detail is None else msgspec.json.encode(detail).decode(),
        address=actor.address,
    )


def reveal(tx: Tx, actor: Actor, target: str | None, query: Mapping[str, Any] | None = None) -> None:
    """Record that redacted values of this job or request, or of a list of them, are shown to an actor.

    `query`: the filters of the list, `meta.KEY` or a table `meta` among them.
    """
    detail = None if query is None else {"query": {name: _kept(name, text) for name, text in query.items()}}
    record(tx, actor, Action.REVEAL, target, detail)


def _kept(name: str, text: Any) -> Any:
    """A filter without the values of meta: they may be the very ones that are redacted."""
    if name.startswith("meta."):
        return REDACTED
    return dict.fromkeys(text, REDACTED) if name == "meta" and isinstance(text, Mapping) else text


def list_(
    tx: Tx,
    *,
    actor: str | None = None,
    target: str | None = None,
    since: int | None = None,
    limit: int = 50,
    after: str | None = None,
) -> AuditPage:
    """Acts, newest first. `since`: microseconds of store time."""
    page = audit.list_(tx, actor=actor, target=target, since=since, limit=limit, after=after)
    return AuditPage([documents.act(row) for row in page.rows], page.next)


def of_job(tx: Tx, job: Document) -> list[Document]:
    """The acts on a job, those on many jobs that it was one of too; newest first."""
    since = documents.store_time(job["created_at"])
    rows = audit.of_job(tx, job["id"], job["handler"], since, limit=MAX_ACTS_OF_JOB)
    return [documents.act(row) for row in rows]
