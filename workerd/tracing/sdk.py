"""What each process makes of OpenTelemetry's SDK: a provider, and a flush that ends in time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from workerd.tracing.context import TraceContext, parse
from workerd.tracing.switch import FLUSH_LIMIT_S

SCOPE = "workerd"
"""The name of the tracer that all spans of workerd are made by."""


def provider(processor: SpanProcessor | None, of: Resource, ids: IdGenerator | None = None) -> TracerProvider:
    """A provider of this process, by OTEL_*."""
    made = TracerProvider(resource=of, id_generator=ids, shutdown_on_exit=False)
    if processor is not None:
        made.add_span_processor(processor)
    return made


def resource(service: str, node: str = "") -> Resource:
    """What all spans of this process have in common; `service`: its name where OTEL_* give none."""
    own = {"workerd.node": node} if node else {}
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    if service and not named:
        own["service.name"] = service
    return Resource.create(own)


def finished_in_time(work: Callable[[], object], limit_s: float = FLUSH_LIMIT_S) -> bool:
    """Whether `work` was done within the limit; later it continues in a daemon thread."""
    thread = threading.Thread(target=work, name="workerd-flush", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter ends
        return False
    thread.join(limit_s)
    return not thread.is_alive()


def remote(context: TraceContext) -> SpanContext:
    """The span of another process."""
    state = TraceState.from_header([context.tracestate]) if context.tracestate else None
    return SpanContext(context.trace_id, context.span_id, True, TraceFlags(context.flags), state)


def headers(span: trace.Span) -> TraceContext | None:
    """The context of a span of this process, for another one."""
    found = span.get_span_context()
    if not found.is_valid:
        return None
    flags = found.trace_flags & TraceFlags.SAMPLED
    return parse(f"00-{found.trace_id:032x}-{found.span_id:016x}-{flags:02x}", found.trace_state.to_header())
