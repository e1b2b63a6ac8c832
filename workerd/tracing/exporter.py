"""The exporter that OTEL_* name; only processes that export import it, for it takes megabytes."""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import entry_points

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter

_EXPORTERS = "opentelemetry_traces_exporter"
"""The group of entry points that OTEL_TRACES_EXPORTER names one of."""


def exporter() -> SpanExporter | None:
    """The exporter that OTEL_TRACES_EXPORTER names, by default OTLP over HTTP; None for "none".

    An exporter that is not installed is replaced by the default one.
    """
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").split(",")[0].strip()
    if name == "none":
        return None
    if name in ("", "otlp"):
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", ""
        )
        name = "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"
    for entry in entry_points(group=_EXPORTERS, name=name):
        with contextlib.suppress(ImportError):
            made: SpanExporter = entry.load()()
            return made
    return OTLPSpanExporter()
