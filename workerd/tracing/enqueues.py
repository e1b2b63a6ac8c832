"""Spans of enqueues: `send`, and of several jobs one `create` each; their context goes into `meta`."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Sequence
from types import TracebackType

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from workerd.document_types import Enqueued
from workerd.job import id_text
from workerd.job_spec import NewJob
from workerd.tracing import attributes as names
from workerd.tracing.context import TraceContext, into_meta, is_malformed, of_meta
from workerd.tracing.exporter import exporter
from workerd.tracing.sdk import SCOPE, finished_in_time, headers, provider, remote, resource
from workerd.tracing.switch import NOT_TRACED

NOT_TAKEN = "The collector has not taken all spans of this enqueue in time; the jobs are not affected."
MAX_CREATE_SPANS = 1000
"""Of one call; the jobs of a longer one have the context of its `send`."""

_log = logging.getLogger("workerd")


class EnqueueTracing:
    """Makes the spans by the provider that the program has set, else by one of its own.

    Its own is made at the first enqueue, and flushed at `flush` and at the end of the process. `service`: the
    name of a process of workerd's own, which says once what the SDK would log at each try; "": of others.
    """

    def __init__(self, service: str = "") -> None:
        self._service = service
        self._own: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None

    def sending(self, jobs: list[NewJob], parent: TraceContext | None) -> Sending:
        """The enqueue of these jobs; `parent`: the caller's span, None: the current one of this process."""
        context = None if parent is None else trace.set_span_in_context(
            trace.NonRecordingSpan(remote(parent)), Context()
        )  # fmt: skip
        return Sending(self._made_by(), jobs, context)

    def flush(self) -> bool:
        """Export what is kept, within FLUSH_LIMIT_S; whether that was enough."""
        return self._own is None or finished_in_time(self._own.force_flush)

    def _made_by(self) -> trace.Tracer:
        if self._tracer is None:
            found = trace.get_tracer_provider()
            if isinstance(found, trace.ProxyTracerProvider):
                found = self._made() or found
            self._tracer = found.get_tracer(SCOPE)
        return self._tracer

    def _made(self) -> TracerProvider | None:
        """A provider by OTEL_*; None where a variable is wrong, which is no reason to enqueue nothing."""
        try:
            sends = exporter()
            processor = None if sends is None else BatchSpanProcessor(sends)
            self._own = provider(processor, resource(self._service))
        except Exception as error:
            _log.warning(NOT_TRACED, error)
            return None
        if self._service:
            logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        atexit.register(self._flush_at_exit)
        return self._own

    def _flush_at_exit(self) -> None:
        if not self.flush() and self._service:
            _log.warning(NOT_TAKEN)


class Sending:
    """One enqueue. `jobs`: with the context to enqueue them with; `enqueued`: set to what came of them."""

    def __init__(self, tracer: trace.Tracer, jobs: list[NewJob], parent: Context | None) -> None:
        self.enqueued: Sequence[Enqueued] = ()
        self._tracer = tracer
        self._given = [of_meta(job.meta) for job in jobs]
        self._span = self._begin(jobs, parent)
        self._created = self._create(jobs)
        contexts = [given or headers(span) for given, span in zip(self._given, self._created, strict=True)]
        self.jobs = [_with_context(job, found) for job, found in zip(jobs, contexts, strict=True)]

    def _begin(self, jobs: Sequence[NewJob], parent: Context | None) -> Span:
        handlers = {job.handler for job in jobs}
        handler = handlers.pop() if len(handlers) == 1 else ""
        found = names.of_operation("send", "send", handler)
        if len(jobs) != 1:
            found[names.BATCH_COUNT] = len(jobs)
        elif (job_id := jobs[0].id) is not None:
            found[names.MESSAGE_ID] = id_text(job_id)
        if any(is_malformed(job.meta) for job in jobs):
            found[names.MALFORMED_CONTEXT] = True
        return self._tracer.start_span(
            f"send {handler}".rstrip(),
            context=parent,
            kind=SpanKind.PRODUCER if len(jobs) == 1 else SpanKind.CLIENT,
            attributes=found,
            links=[Link(remote(given)) for given in self._given[:MAX_CREATE_SPANS] if given is not None],
        )

    def _create(self, jobs: Sequence[NewJob]) -> list[Span]:
        """The span that each job comes from."""
        if not 1 < len(jobs) <= MAX_CREATE_SPANS:
            return [self._span] * len(jobs)
        within = trace.set_span_in_context(self._span)
        return [
            self._tracer.start_span(
                f"create {job.handler}",
                context=within,
                kind=SpanKind.PRODUCER,
                attributes=names.of_operation("create", "create", job.handler),
            )
            if given is None
            else self._span
            for job, given in zip(jobs, self._given, strict=True)
        ]

    def __enter__(self) -> Sending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        if kind is not None:
            # Its text may quote vars.
            self._span.set_status(Status(StatusCode.ERROR, kind.__name__))
            self._span.set_attribute(names.ERROR_TYPE, f"{kind.__module__}.{kind.__qualname__}")
        for span, done in zip(self._created, self.enqueued, strict=False):
            if span is not self._span or len(self.jobs) == 1:
                span.set_attribute(names.MESSAGE_ID, done.id)
                if not done.created:
                    span.set_attribute(names.CREATED, False)
        for span in self._created:
            if span is not self._span:
                span.end()
        self._span.end()


def _with_context(job: NewJob, context: TraceContext | None) -> NewJob:
    meta = None if context is None else into_meta(job.meta, context)
    return job if meta is None else msgspec.structs.replace(job, meta=meta)
