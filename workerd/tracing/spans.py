"""A span on its way from the worker that made it to the ingester that exports it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

Scrub = Callable[[str], str]
Values = dict[str, Any]


class SpanRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which span; `trace_id`, `span_id`: big-endian bytes; `state`: the header tracestate."""

    trace_id: bytes
    span_id: bytes
    flags: int
    state: str = ""
    remote: bool = False


class SpanRecord(msgspec.Struct, array_like=True, gc=False):
    """An ended span. `start`, `end`: nanoseconds since 1970; `kind`, `status`: the numbers of the API."""

    name: str
    ref: SpanRef
    parent: SpanRef | None
    kind: int
    start: int
    end: int
    attributes: Values
    events: list[tuple[str, int, Values]]
    links: list[tuple[SpanRef, Values]]
    status: int
    description: str | None
    scope: tuple[str, str]


class RunSpans(msgspec.Struct, array_like=True, gc=False):
    """The span of a run, the spans that ended during it, and how many of them were left out."""

    process: SpanRecord
    others: list[SpanRecord]
    dropped: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RunSpans)
_batch_decoder = msgspec.msgpack.Decoder(list[SpanRecord])


def encode(spans: RunSpans) -> bytes:
    """As bytes. Raises what msgspec raises for an attribute that it cannot encode."""
    return _encoder.encode(spans)


def decode(data: bytes) -> RunSpans:
    """From bytes. Raises msgspec.MsgspecError."""
    return _decoder.decode(data)


def encode_batch(batch: list[SpanRecord]) -> bytes:
    """Spans without that of their run. Raises as `encode`."""
    return _encoder.encode(batch)


def decode_batch(data: bytes) -> list[SpanRecord]:
    """From bytes. Raises msgspec.MsgspecError."""
    return _batch_decoder.decode(data)


def size(record: SpanRecord) -> int:
    """Bytes of it. Raises as `encode`."""
    return len(_encoder.encode(record))


def record(span: ReadableSpan, scrub: Scrub | None = None) -> SpanRecord:
    """An ended span as it travels; `scrub`: what removes values that are not to be shown from its texts."""
    scope = span.instrumentation_scope
    made = SpanRecord(
        name=span.name,
        ref=_ref(span.context),
        parent=None if span.parent is None else _ref(span.parent),
        kind=span.kind.value,
        start=span.start_time or 0,
        end=span.end_time or 0,
        attributes=dict(span.attributes or {}),
        events=[(e.name, e.timestamp, dict(e.attributes or {})) for e in span.events],
        links=[(_ref(link.context), dict(link.attributes or {})) for link in span.links],
        status=span.status.status_code.value,
        description=span.status.description,
        scope=("", "") if scope is None else (scope.name, scope.version or ""),
    )
    return made if scrub is None else _scrubbed(made, scrub)


def readable(record: SpanRecord, resource: Resource) -> ReadableSpan:
    """The span as an exporter takes it."""
    return ReadableSpan(
        record.name,
        _context(record.ref),
        None if record.parent is None else _context(record.parent),
        resource,
        record.attributes,
        [Event(name, attributes, timestamp) for name, timestamp, attributes in record.events],
        [Link(_context(ref), attributes) for ref, attributes in record.links],
        _KINDS[record.kind],
        status=Status(StatusCode(record.status), record.description) if record.status else _UNSET,
        start_time=record.start,
        end_time=record.end,
        instrumentation_scope=_scope(*record.scope),
    )


_KINDS = list(SpanKind)
_UNSET = Status()


@lru_cache(maxsize=256)
def _scope(name: str, version: str) -> InstrumentationScope:
    return InstrumentationScope(name, version)


def _ref(context: SpanContext) -> SpanRef:
    return SpanRef(
        context.trace_id.to_bytes(16, "big"),
        context.span_id.to_bytes(8, "big"),
        int(context.trace_flags),
        context.trace_state.to_header() if context.trace_state else "",
        context.is_remote,
    )


def _context(ref: SpanRef) -> SpanContext:
    state = TraceState.from_header([ref.state]) if ref.state else None
    return SpanContext(
        int.from_bytes(ref.trace_id, "big"), int.from_bytes(ref.span_id, "big"), ref.remote,
        TraceFlags(ref.flags), state,
    )  # fmt: skip


def _scrubbed(made: SpanRecord, scrub: Scrub) -> SpanRecord:
    return msgspec.structs.replace(
        made,
        name=scrub(made.name),
        attributes=_clean(made.attributes, scrub),
        events=[(scrub(name), at, _clean(values, scrub)) for name, at, values in made.events],
        links=[(ref, _clean(values, scrub)) for ref, values in made.links],
        description=None if made.description is None else scrub(made.description),
    )


def _clean(value: Any, scrub: Scrub) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: _clean(item, scrub) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, scrub) for item in value]
    return value
