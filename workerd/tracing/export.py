"""What ended runs become: their spans with reason, error and times, given to the collector in batches."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, get_current_span

from workerd.job import AttemptRef
from workerd.job import Status as JobStatus
from workerd.log import get_logger
from workerd.outcome import BAD_REASONS, Outcome, Reason, RunTrace
from workerd.tracing import attributes as names
from workerd.tracing import spans
from workerd.tracing.context import parse, trace_of
from workerd.tracing.exporter import exporter
from workerd.tracing.runs import LinkMode, ids_of, origin_of, process_attributes
from workerd.tracing.sdk import SCOPE, finished_in_time, provider, resource
from workerd.tracing.switch import FLUSH_LIMIT_S

US_IN_NS = 1000
_MAX_QUEUE = "OTEL_BSP_MAX_QUEUE_SIZE"
_DEFAULT_MAX_QUEUE = 2048

MetasOf = Callable[[Sequence[AttemptRef]], Mapping[AttemptRef, bytes | None]]
"""Reads the `meta` of rows."""

log = get_logger("ingester")


class SpanExport:
    """Exports the spans of runs whose outcomes took effect.

    A thread sends them, and never keeps the ingester waiting: where the collector is too slow or away, the
    queue of OTEL_BSP_MAX_QUEUE_SIZE spans fills, and further ones are dropped and counted. Raises ValueError,
    or what the exporter raises, for a variable OTEL_* that is wrong.
    """

    def __init__(self, mode: LinkMode, node: str) -> None:
        # What goes wrong is logged here, once, not by the SDK for each batch.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._mode = mode
        self._provider = provider(None, resource("workerd", node))
        self._disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        self._scope = InstrumentationScope(SCOPE)
        self._counting = _Counting(exporter())
        self._max_queue = _whole(os.environ.get(_MAX_QUEUE), _DEFAULT_MAX_QUEUE)
        self._processor = BatchSpanProcessor(self._counting)
        self._given = self._lost = 0
        self._told: Counter[str] = Counter()

    def recorded(self, outcomes: Sequence[Outcome], now: int, metas_of: MetasOf) -> None:
        """Export the spans of these; `now`: the store time of their writing. Never raises."""
        try:
            if not self._disabled:
                self._export(outcomes, now, metas_of)
        except Exception:
            log.exception("spans.failed")

    def ended(self, data: bytes) -> None:
        """Export spans of a run that goes on. Never raises."""
        try:
            for record in spans.decode_batch(data):
                self._give(spans.readable(record, self._provider.resource))
        except Exception:
            log.exception("spans.failed")

    def _export(self, outcomes: Sequence[Outcome], now: int, metas_of: MetasOf) -> None:
        lost = [o.ref for o in outcomes if o.trace is None and o.reason is Reason.LOST]
        metas = metas_of(lost) if lost else {}
        for outcome in outcomes:
            trace = outcome.trace
            if trace is None and outcome.ref in metas:
                trace = trace_of(metas[outcome.ref])
            if trace is None or outcome.status is JobStatus.NEW:
                continue
            for span in self._spans_of(outcome, trace, now):
                self._give(span)

    def _give(self, span: ReadableSpan) -> None:
        if self._given - self._lost - self._counting.taken >= self._max_queue:
            self._lost += 1  # the processor makes room by forgetting one
        self._given += 1
        self._processor.on_end(span)

    def _spans_of(self, outcome: Outcome, trace: RunTrace, now: int) -> list[ReadableSpan]:
        common = self._provider.resource
        if trace.spans is None:
            made = self._of_row(outcome, trace, now)
            return [] if made is None else [made]
        if not trace.spans:
            return []  # not sampled
        found = spans.decode(trace.spans)
        process = found.process
        process.attributes |= _ending(outcome)
        if found.dropped:
            process.attributes[names.DROPPED_SPANS] = found.dropped
        if (status := _status(outcome)) is not None:
            process.status, process.description = status.status_code.value, status.description
        process.events += _exceptions(outcome, process.end)
        return [spans.readable(record, common) for record in (process, *found.others)]

    def _of_row(self, outcome: Outcome, trace: RunTrace, now: int) -> ReadableSpan | None:
        """The span of a run whose worker, pool or node died: by what is known of it here."""
        origin = parse(trace.traceparent, trace.tracestate)
        parent, links = origin_of(origin, self._mode)
        creation = get_current_span(parent).get_span_context()
        trace_id, span_id = ids_of(outcome)
        if creation.is_valid:
            trace_id = creation.trace_id
        name = f"process {outcome.handler}"
        attributes: dict[str, Any] = dict(process_attributes(outcome))
        sampled = self._provider.sampler.should_sample(
            parent, trace_id, name, SpanKind.CONSUMER, attributes, links
        )
        if sampled.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        started = outcome.started_at or outcome.claimed_at
        return ReadableSpan(
            name,
            SpanContext(trace_id, span_id, False, TraceFlags(TraceFlags.SAMPLED), sampled.trace_state),
            creation if creation.is_valid else None,
            self._provider.resource,
            {**attributes, **_ending(outcome)},
            [],
            links,
            SpanKind.CONSUMER,
            status=_status(outcome) or Status(),
            start_time=started * US_IN_NS,
            end_time=max(outcome.finished_at or now, started) * US_IN_NS,
            instrumentation_scope=self._scope,
        )

    def counted(self) -> Counter[str]:
        """How many spans since the last call were exported, failed to be, or found the queue full."""
        counting = self._counting
        total = Counter(exported=counting.exported, failed=counting.failed, dropped=self._lost)
        told, self._told = self._told, total
        return total - told

    def flush(self, limit_s: float = FLUSH_LIMIT_S) -> bool:
        """Export what is in the queue within the limit; whether that was enough."""
        return finished_in_time(self._processor.force_flush, limit_s)


class _Counting(SpanExporter):
    """Counts what became of the spans given to an exporter, and logs when it begins and ceases to fail."""

    def __init__(self, sends: SpanExporter | None) -> None:
        self._sends = sends
        self._failing = False
        self.taken = self.exported = self.failed = 0

    def export(self, batch: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(batch)
        if self._sends is None:
            return SpanExportResult.SUCCESS
        try:
            result = self._sends.export(batch)
        except Exception as error:
            self._note(len(batch), f"{type(error).__name__}: {error}")
            return SpanExportResult.FAILURE
        self._note(len(batch), "" if result is SpanExportResult.SUCCESS else "the collector took no batch")
        return result

    def _note(self, count: int, error: str) -> None:
        if error:
            self.failed += count
        else:
            self.exported += count
        if bool(error) is not self._failing:
            self._failing = bool(error)
            if error:
                log.warning("spans.export_failed", error=error)
            else:
                log.info("spans.export_resumed")

    def shutdown(self) -> None:
        if self._sends is not None:
            self._sends.shutdown()


def _ending(outcome: Outcome) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    if outcome.reason is not None:
        found[names.REASON] = outcome.reason.value
    if outcome.reason in BAD_REASONS:
        found[names.ERROR_TYPE] = outcome.error_class or outcome.reason.value
    if outcome.run_at is not None and outcome.started_at is not None:
        found[names.QUEUE_MS] = max(0, outcome.started_at - outcome.run_at) // 1000
    return found


def _status(outcome: Outcome) -> Status | None:
    """An error for what failed; a retry that the handler asked for, or a cancel, is none."""
    if outcome.reason not in BAD_REASONS:
        return None
    return Status(StatusCode.ERROR, outcome.error)


def _exceptions(outcome: Outcome, at: int) -> list[tuple[str, int, dict[str, Any]]]:
    """The event of what the handler raised: as it is stored, without what is redacted."""
    if outcome.reason not in BAD_REASONS or outcome.stack is None:
        return []
    return [
        (
            names.EXCEPTION,
            at,
            {
                names.EXCEPTION_TYPE: outcome.error_class or "",
                names.EXCEPTION_MESSAGE: outcome.error or "",
                names.EXCEPTION_STACK: outcome.stack,
            },
        )
    ]


def _whole(text: str | None, default: int) -> int:
    try:
        return int(text or default)
    except ValueError:
        return default
