"""Rows of the store as the documents that every interface shows; their types are in document_types.py."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from workerd.clock import SECOND, from_rfc3339, to_rfc3339
from workerd.config.limit_config import LimitConfig
from workerd.config.quantities import duration_literal
from workerd.document_types import Act, Attempt, Document, ErrorGroup, Handler, Job, Node, Request, Schedule
from workerd.job import ENDED, AttemptRef, id_text
from workerd.outcome import Outcome
from workerd.rate_limit import Rate
from workerd.redaction import REDACTED, Redaction, scrubber_of
from workerd.store import limits, slots, stats
from workerd.store.audit import AuditRow
from workerd.store.columns import JobRow, RequestRow
from workerd.store.errors import GroupRow
from workerd.store.handlers import HandlerRow
from workerd.store.nodes import NodeRecord
from workerd.store.queries import StoredJob
from workerd.store.schedules import ScheduleRow
from workerd.store.ticks import PastTick
from workerd.workflow import ADHOC

# -- from stored rows


def moment(us: int | None) -> str | None:
    """A store time, microseconds, in RFC 3339."""
    return None if us is None else to_rfc3339(us)


def store_time(moment_: str | None) -> int:
    """The store time of RFC 3339 in a document; 0 for None."""
    return 0 if moment_ is None else from_rfc3339(moment_)


def identity(value: bytes | None) -> str | None:
    """An id as UUID text."""
    return None if value is None else id_text(value)


def json_value(text: bytes | None) -> Any:
    """The value of JSON text; text that is not JSON is shown as it is."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return text.decode("utf-8", "replace")


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


_is_ended = ENDED.__contains__

_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("id", "request_id", "last_job", "job_id"), identity),
    "fingerprint": _hex,
    **dict.fromkeys(("vars", "meta", "params", "extras", "signature", "detail"), json_value),
    **dict.fromkeys(
        (
            "run_at", "created_at", "claimed_at", "started_at", "finished_at", "ingested_at", "completed_at",
            "at", "seen_at", "paused_at", "next_at", "last_tick", "last_end", "lease_until", "first_seen",
            "last_seen", "resolved_at", "muted_until", "expires_at",
        ),
        moment,
    ),
    "complete": _is_ended,
}  # fmt: skip
"""How the stored value of a field is shown, where it is not shown as it is."""
_COLUMNS = {"complete": "status", "group": "group_key", "unique_key": "shown_key"}
"""The columns of fields that are not named after theirs."""


def shown_text(text: bytes | None, redaction: Redaction) -> Any:
    """The value of JSON text as it is shown; text that is not JSON is not shown if anything is redacted."""
    value = json_value(text)
    if not redaction or text is None:
        return value
    is_raw = isinstance(value, str) and not text.lstrip().startswith(b'"')
    return REDACTED if is_raw else redaction.shown(value)


class _Reader:
    """Reads the document of one type from a row, without the `computed` fields."""

    def __init__(self, kind: type[msgspec.Struct], *computed: str) -> None:
        self._names = tuple(name for name in kind.__struct_fields__ if name not in computed)
        self._values = attrgetter(*(_COLUMNS.get(name, name) for name in self._names))
        self._conversions = [(name, _CONVERSIONS[name]) for name in self._names if name in _CONVERSIONS]

    def __call__(self, row: object) -> Document:
        document = dict(zip(self._names, self._values(row), strict=True))
        for name, convert in self._conversions:
            # Most times are NULL, and each call costs ten times the look.
            if document[name] is not None or convert is _is_ended:
                document[name] = convert(document[name])
        return document


_act = _Reader(Act)
_attempt = _Reader(Attempt)
_handler = _Reader(Handler)
_job = _Reader(Job, "state", "payload", "payload_base64", "attempts")
_request = _Reader(Request, "jobs")
_schedule = _Reader(Schedule, "pause", "note", "history")
_node = _Reader(Node, "state")
_error_group = _Reader(ErrorGroup, "open")


def job(found: StoredJob | JobRow, redaction: Redaction) -> Document:
    """A job; with payload and attempts if it was read with them. `redaction`: of its handler."""
    row = found if isinstance(found, JobRow) else found.row
    document = _job(row)
    if redaction:
        for name in ("vars", "meta"):
            document[name] = shown_text(getattr(row, name), redaction)
    if isinstance(found, JobRow):
        return document
    return {
        **document,
        "state": _state(row, redaction),
        **_payload(row, redaction),
        "attempts": [_attempt(attempt) for attempt in found.attempts],
    }


def _state(row: JobRow, redaction: Redaction) -> Any:
    """What it has saved, without the values of its vars and meta that are not shown, wherever they stand."""
    if not redaction or row.state is None:
        return json_value(row.state)
    scrub = scrubber_of(redaction, row.vars, row.meta)
    return shown_text(scrub(row.state.decode("utf-8", "replace")).encode(), redaction)


def replayed(outcome: Outcome, redaction: Redaction) -> Document:
    """How a run beside the daemon ended: the names of a job's document, as far as they apply.

    `retry_in_s`: after which the daemon would run it again; `spawned`: how many jobs it asked for.
    """
    usage, fingerprint = outcome.usage, outcome.fingerprint
    return {
        "id": id_text(outcome.id),
        "handler": outcome.handler,
        "attempt": outcome.attempt,
        "status": str(outcome.status),
        "reason": outcome.reason,
        "success": outcome.success,
        "error": outcome.error,
        "error_class": outcome.error_class,
        "fingerprint": None if fingerprint is None else fingerprint.hex(),
        "stack": outcome.stack,
        "exit_signal": outcome.exit_signal,
        "exit_code": outcome.exit_code,
        "progress": outcome.progress,
        "note": outcome.note,
        "run_us": usage.run_us,
        "cpu_us": usage.cpu_us,
        "max_rss_kib": usage.max_rss_kib,
        "retry_in_s": None if outcome.next is None else outcome.next.delay_us / 1e6,
        "spawned": 0 if outcome.spawn is None else len(msgspec.json.decode(outcome.spawn)),
        "extras": shown_text(outcome.extras, redaction),
        **_payload(outcome, redaction),
    }


def _payload(row: JobRow | Outcome, redaction: Redaction) -> Document:
    if row.payload is None:
        return {"payload": None, "payload_base64": None}
    if row.payload_type == "json":
        return {"payload": shown_text(row.payload, redaction), "payload_base64": None}
    return {"payload": None, "payload_base64": base64.b64encode(row.payload).decode("ascii")}


def request(
    row: RequestRow, redaction: Redaction, jobs: Sequence[tuple[JobRow, Redaction]] | None = None
) -> Document:
    """A request; with its jobs if they are given. `redaction`: of all its handlers together."""
    document = _request(row)
    if redaction:
        for name in ("params", "extras"):
            document[name] = shown_text(getattr(row, name), redaction)
    if row.workflow == ADHOC:
        document["workflow"] = None
    if jobs is not None:
        document["jobs"] = [job(*one) for one in jobs]
    return document


def request_title(document: Document) -> str:
    """What a request is called for people."""
    return str(document["workflow"] or document["name"] or "batch")


def handler(row: HandlerRow) -> Document:
    """A handler, with the live nodes that have it."""
    return _handler(row)


def schedule(row: ScheduleRow, next_at: int | None = None, note: str | None = None) -> Document:
    """A schedule; `next_at`: a cron's next tick, which follows from its expression."""
    document = {**_schedule(row), "pause": row.own_pause_s, "note": note, "history": []}
    if row.kind != "cooler":
        document["next_at"] = moment(next_at)
    return document


def handler_stats(found: stats.HandlerStats, now: int) -> Document:
    """The figures of a handler at the store time `now`."""
    return {
        "due": found.due,
        "scheduled": found.scheduled,
        "running": found.running,
        "oldest_s": 0.0 if found.oldest is None else round(max(0, now - found.oldest) / SECOND, 3),
        "workers": found.workers,
        "in_per_s": round(found.came / stats.SPAN_S, 3),
        "out_per_s": round(found.ended / stats.SPAN_S, 3),
    }


def error_group(row: GroupRow, now: int) -> Document:
    """A group of failures; `now`: the store's clock, by which it is muted."""
    muted = row.muted_until is not None and row.muted_until > now
    return {**_error_group(row), "open": row.resolved_at is None and not muted}


def past_tick(past: PastTick) -> Document:
    """A tick of the past."""
    return {**past._asdict(), "tick": moment(past.tick), "job_id": identity(past.job_id)}


def node(row: NodeRecord, now: int) -> Document:
    """A node; `now`: the store's clock, which decides whether its lease has expired."""
    return {**_node(row), "state": "up" if row.lease_until > now else "lost"}


def act(row: AuditRow) -> Document:
    """An act of a person or program."""
    return _act(row)


def limit(
    name: str,
    config: LimitConfig | None,
    *,
    handlers: Sequence[str],
    waiting: int,
    holders: Sequence[slots.Holder],
    rows: Mapping[AttemptRef, JobRow],
    holds: Sequence[limits.Held],
    shown: int,
) -> Document:
    """A limit, with what `config` says of it on all nodes, and the rows of the attempts that hold it."""
    by_ref: dict[AttemptRef, str | None] = {}
    groups: dict[str, Document] = {}
    for holder in holders:
        by_ref[holder.ref] = holder.group if holder.group is not None else by_ref.get(holder.ref)
        if holder.group is not None:
            _limit_group(groups, holder.group)["used"] += 1
    for hold in holds:
        if hold.group is not None:
            _limit_group(groups, hold.group)["held_until"] = moment(hold.until)
    given = LimitConfig() if config is None else config
    return {
        "name": name,
        "configured": config is not None,
        "concurrency": given.concurrency,
        "group_concurrency": given.group_concurrency,
        "rate": rate(given.rate),
        "burst": given.shown_burst,
        "group_rate": rate(given.group_rate),
        "handlers": list(handlers),
        "used": len(by_ref),
        "waiting": waiting,
        "held_until": moment(max((hold.until for hold in holds if hold.group is None), default=None)),
        "groups": list(groups.values()),
        "holders": [_limit_holder(ref, group, rows.get(ref)) for ref, group in list(by_ref.items())[:shown]],
    }


def _limit_group(groups: dict[str, Document], group: str) -> Document:
    return groups.setdefault(group, {"group": group, "used": 0, "held_until": None})


def _limit_holder(ref: AttemptRef, group: str | None, row: JobRow | None) -> Document:
    return {
        "job_id": id_text(ref.id),
        "attempt": ref.attempt,
        "group": group if group is not None or row is None else row.group_key,
        "handler": None if row is None else row.handler,
        "node": None if row is None else row.node,
        "since": None if row is None else moment(row.claimed_at),
    }


def rate(rate: Rate | None) -> str | None:
    """A rate as it is configured."""
    return None if rate is None else f"{rate.count}/{duration_literal(rate.period_us / 1_000_000)}"
