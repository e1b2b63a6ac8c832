"""The span `process` of each run, current while the handler runs, and the spans that end during it."""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from hashlib import blake2b
from typing import Literal, Protocol

import msgspec
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link as SpanLink
from opentelemetry.trace import Span, SpanKind

from workerd.job import Claim, id_text
from workerd.messages import Traced
from workerd.outcome import Outcome, RunResult, RunTrace
from workerd.tracing import attributes as names
from workerd.tracing import spans
from workerd.tracing.context import TraceContext, is_malformed, of_meta
from workerd.tracing.sdk import SCOPE, finished_in_time, headers, provider, remote

MAX_SPANS = 1000
MAX_BYTES = 256 * 1024
"""What travels with an outcome, or in one message before it; further spans are left out and counted."""
BATCH_SPANS, BATCH_S = 64, 1.0
"""So many spans, or the first after so long, are sent while the run goes on."""
MAX_KEPT_ATTRIBUTES, MAX_KEPT_CHARS = 64, 1000
"""What is kept of a run's own span that alone is larger."""

LinkMode = Literal["link", "parent"]
Scrub = Callable[[str], str]


def ids_of(attempt: Claim | Outcome) -> tuple[int, int]:
    """The trace and the span of a run: whoever makes its span, worker or ingester, makes the same one."""
    named = b"%b%d/%d" % (attempt.id, attempt.attempt, attempt.claimed_at)
    digest = blake2b(named, digest_size=24).digest()
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:], "big") or 1


def process_attributes(attempt: Claim | Outcome) -> dict[str, str | int | bool]:
    """What the span of a run has from its beginning."""
    found = names.of_operation("process", "process", attempt.handler)
    found[names.MESSAGE_ID] = id_text(attempt.id)
    found[names.ATTEMPT] = attempt.attempt
    if attempt.request_id is not None:
        found[names.CONVERSATION_ID] = id_text(attempt.request_id)
        if attempt.name is not None:
            found[names.STEP] = attempt.name
    return found


def origin_of(context: TraceContext | None, mode: LinkMode) -> tuple[Context, list[SpanLink]]:
    """The parent context and the links of a run's span."""
    if context is None:
        return Context(), []
    creation = remote(context)
    if mode == "parent":
        return trace.set_span_in_context(trace.NonRecordingSpan(creation), Context()), []
    return Context(), [SpanLink(creation)]


class _RunIds(RandomIdGenerator):
    """The ids of the run that begins."""

    trace_id = span_id = 1

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Link(Protocol):
    """The way to the pool."""

    def send(self, message: Traced) -> None:
        """Send it; called from any thread of the handler's."""


class _Collector(SpanProcessor):
    """Keeps spans that have ended, also in threads of the handler's, until they are sent or the run ends."""

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []
        self.dropped = 0
        self._link: Link | None = None
        self._scrub: Scrub = str
        self._since = 0.0
        self._sending = threading.Lock()
        self._pid = os.getpid()

    def send_by(self, link: Link, scrub: Scrub) -> None:
        """Send them while the run goes on, by `link`."""
        self._link, self._scrub = link, scrub

    def on_end(self, span: ReadableSpan) -> None:
        if not span.context.trace_flags.sampled:
            return
        if not self.ended:
            self._since = time.monotonic()
        if len(self.ended) < MAX_SPANS:
            self.ended.append(span)
        else:
            self.dropped += 1
        if len(self.ended) >= BATCH_SPANS or time.monotonic() - self._since >= BATCH_S:
            self._send()

    def _send(self) -> None:
        if self._link is None or self._pid != os.getpid() or not self._sending.acquire(blocking=False):
            return
        try:
            batch, self._since = self.ended[:BATCH_SPANS], time.monotonic()
            records = _fitting(batch, self._scrub)
            self._link.send(Traced(spans.encode_batch(records)))
            # Not before: the soft signal may have ended this, and they are sent with the next ones.
            del self.ended[: len(batch)]
            self.dropped += len(batch) - len(records)
        except OSError:  # the pool is gone
            self._link = None
        finally:
            self._sending.release()

    def take(self) -> tuple[list[ReadableSpan], int]:
        """What was not sent, and how many were left out."""
        ended, dropped = self.ended, self.dropped
        self.ended, self.dropped = [], 0
        return ended, dropped


class RunTracing:
    """Traces the runs of one worker; made in its process, and exports nothing itself.

    Spans of other libraries end here too, unless the program has set a provider of its own.
    """

    def __init__(self, mode: LinkMode) -> None:
        self._mode = mode
        self._ids = _RunIds()
        self._runs, self._others = _Collector(), _Collector()
        unknown = Resource.get_empty()  # the ingester knows what all spans have in common
        # A provider of its own, for the ids of runs are not drawn by lot.
        self._tracer = provider(self._runs, unknown, self._ids).get_tracer(SCOPE)
        self._of_program = provider(self._others, unknown)
        self.step_tracer = self._of_program.get_tracer(SCOPE)

    def adopt_program(self) -> None:
        """Take the spans of other libraries, once the program's code has been loaded."""
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(self._of_program)

    def flush_program(self) -> None:
        """Flush the provider that the program has set, within FLUSH_LIMIT_S."""
        flush = getattr(trace.get_tracer_provider(), "force_flush", None)
        if flush is not None and trace.get_tracer_provider() is not self._of_program:
            finished_in_time(flush)

    def begin(self, claim: Claim, link: Link, scrub: Scrub) -> TracedRun | None:
        """Begin the span of a run, and make it the current one; `link` takes what ends while it goes on.

        None where OpenTelemetry raises something, such as a sampler of the program's.
        """
        self._others.send_by(link, scrub)
        try:
            return self._begin(claim)
        except Exception as error:
            _tell(error)
            return None

    def _begin(self, claim: Claim) -> TracedRun:
        origin = of_meta(claim.meta)
        parent, links = origin_of(origin, self._mode)
        self._ids.trace_id, self._ids.span_id = ids_of(claim)
        attributes = process_attributes(claim)
        if origin is None and is_malformed(claim.meta):
            attributes[names.MALFORMED_CONTEXT] = True
        span = self._tracer.start_span(
            f"process {claim.handler}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
        )
        return TracedRun(self, origin, span)

    def take(self, scrub: Scrub) -> bytes:
        """The spans of the run that has ended; empty if it is not sampled."""
        runs, _ = self._runs.take()
        others, dropped = self._others.take()
        if not runs:
            return b""
        records = _fitting(others, scrub)
        dropped += len(others) - len(records)
        return spans.encode(spans.RunSpans(_bounded(spans.record(runs[-1], scrub)), records, dropped))


def _fitting(ended: list[ReadableSpan], scrub: Scrub) -> list[spans.SpanRecord]:
    """As they travel, without those that one message has no room for."""
    room: float = MAX_BYTES
    fitting: list[spans.SpanRecord] = []
    for span in ended:
        record = spans.record(span, scrub)
        size = _size(record)
        if size <= room:
            room -= size
            fitting.append(record)
    return fitting


def _size(record: spans.SpanRecord) -> float:
    """Bytes of it, infinite for an attribute that cannot be encoded."""
    try:
        return spans.size(record)
    except Exception:  # the values are the handler's
        return math.inf


def _bounded(record: spans.SpanRecord) -> spans.SpanRecord:
    """The span of a run, of which what the handler added may be too much: the outcome must fit with it."""
    if _size(record) <= MAX_BYTES:
        return record
    kept = itertools.islice(record.attributes.items(), MAX_KEPT_ATTRIBUTES)
    return msgspec.structs.replace(
        record,
        name=record.name[:MAX_KEPT_CHARS],
        attributes={key[:MAX_KEPT_CHARS]: str(value)[:MAX_KEPT_CHARS] for key, value in kept},
        events=[],
        links=record.links[:1],
        description=None,
    )


class TracedRun:
    """One run with its span."""

    __slots__ = ("_origin", "_span", "_token", "_tracing")

    def __init__(self, tracing: RunTracing, origin: TraceContext | None, span: Span) -> None:
        self._tracing = tracing
        self._origin = origin
        self._span = span
        self._token = contexts.attach(trace.set_span_in_context(span))

    def environment(self) -> dict[str, str]:
        """The variables by which a program goes on with the trace."""
        found = headers(self._span)
        if found is None:
            return {}
        state = {"TRACESTATE": found.tracestate} if found.tracestate else {}
        return {"TRACEPARENT": found.traceparent, **state}

    def step(self, name: str) -> AbstractContextManager[object]:
        """The span of a step that is run."""
        return self._tracing.step_tracer.start_as_current_span(
            f"step {name}", attributes={names.SYSTEM: names.WORKERD, names.STEP: name}
        )

    def end(
        self, result: RunResult, interruption: BaseException | None, interrupted_ns: int, scrub: Scrub
    ) -> RunResult:
        """End the span; the result with it. `interruption`: what the soft signal raised, and when.

        Where OpenTelemetry raises something the result is without, and the ingester makes the span.
        """
        try:
            if interruption is not None:
                self._span.add_event(type(interruption).__name__, timestamp=interrupted_ns)
            self._span.end(time.time_ns())
            contexts.detach(self._token)
            return self._with_trace(result, scrub)
        except Exception as error:
            _tell(error)
            return result

    def _with_trace(self, result: RunResult, scrub: Scrub) -> RunResult:
        origin = self._origin
        trace_ = RunTrace(
            "" if origin is None else origin.traceparent,
            "" if origin is None else origin.tracestate,
            self._tracing.take(scrub),
        )
        return msgspec.structs.replace(result, trace=trace_)


def _tell(error: Exception) -> None:
    """In the log of the run, which goes on."""
    print(f"workerd: this run is not traced: {type(error).__name__}: {error}", file=sys.stderr)
