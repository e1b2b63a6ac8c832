"""Repeats of a call with its Idempotency-Key: whether the body is that of the first call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from workerd.document_types import Enqueued
from workerd.documents import json_value
from workerd.errors import InvalidValue
from workerd.job import Status, id_text
from workerd.job_spec import NewJob
from workerd.store import audit, queries
from workerd.store.base import Tx
from workerd.store.columns import ENQUEUED_COLUMNS, JobRow
from workerd.tracing.context import without_context

KEY_USED = "Idempotency-Key: it was used with another body before; send each body with a key of its own"
MAX_ACTS_READ = 1000
"""Acts on one job, the newest first; one that was changed before them counts as another body."""

_BY_VARS = ("vars", "group_key")


def check_repeat(
    tx: Tx, specs: Sequence[NewJob], enqueued: Sequence[Enqueued], following: bytes | None = None
) -> None:
    """See that jobs whose ids are derived from a key are those of the first call with that key, or all new.

    `following`: the id that a further job of that call would have. Raises InvalidValue.
    """
    repeated = [(spec, done) for spec, done in zip(specs, enqueued, strict=True) if not done.created]
    own = [(spec, done) for spec, done in repeated if spec.id is not None and done.id == id_text(spec.id)]
    rows = queries.first_attempts(tx, [spec.id for spec, _ in own if spec.id is not None])
    same = all(_is_same(tx, spec, rows.get(spec.id or b"")) for spec, _ in own)
    # A call makes all of its jobs or none; one whose unique key was taken has made none of that id.
    partly = own and any(done.created for done in enqueued)
    longer = own and following is not None and queries.first_attempts(tx, [following])
    if not same or partly or longer:
        raise InvalidValue(KEY_USED)


def _is_same(tx: Tx, spec: NewJob, row: JobRow | None) -> bool:
    """Whether the row is what this spec has inserted, apart from what people have changed since."""
    if row is None or row.run_at is None or row.created_at is None:
        return False
    differing = set(_differing(spec, row, row.created_at))
    return not differing or differing.issubset(_changed(tx, row, row.created_at))


def _differing(spec: NewJob, row: JobRow, created_at: int) -> Iterator[str]:
    """The columns that are not what this spec would insert."""
    due = spec.run_at if spec.run_at is not None else created_at + (spec.delay or 0)
    expires_at = spec.expires_at if spec.expires_in is None else due + spec.expires_in
    if row.run_at != due:
        yield "run_at"
    if row.expires_at != expires_at:
        yield "expires_at"
    for name in ENQUEUED_COLUMNS:
        given, found = getattr(spec, name), getattr(row, name)
        if name == "group_key" and given is None:
            continue  # a claim fills it by the handler's template
        if name in ("vars", "meta"):
            given, found = _value(given), _value(found)
        if given != found:
            yield name


def _value(json: bytes | None) -> object:
    return None if json is None else without_context(msgspec.json.decode(json))


def _changed(tx: Tx, row: JobRow, created_at: int) -> Iterator[str]:
    """The columns that people have changed while the attempt waited: later acts are on attempts after it."""
    waits = row.status in (Status.NEW, Status.SCHEDULED)
    over = None if waits else row.claimed_at or row.finished_at
    for act in audit.of_job(tx, id_text(row.id), row.handler, created_at, limit=MAX_ACTS_READ):
        if over is not None and act.at >= over:
            continue
        detail = json_value(act.detail)
        if not isinstance(detail, dict):
            detail = {}
        if act.action == "edit":
            yield from (name for name in ("priority", "run_at") if name in detail)
            yield from ["group_key"] if "group" in detail else []
        elif act.action == "retry":
            yield "run_at"  # one that was scheduled is made due
        yield from _BY_VARS if "vars" in detail else []
