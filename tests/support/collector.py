"""A collector of traces on loopback: takes OTLP over HTTP, and answers, refuses or hangs."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


class SpanRef(NamedTuple):
    """Which span, in hex."""

    trace: str
    span: str


class CollectedSpan(NamedTuple):
    """A span as it arrived; times in nanoseconds, `status`: 0 unset, 1 ok, 2 error."""

    name: str
    kind: str
    ref: SpanRef
    parent: str
    links: list[SpanRef]
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]]
    start: int
    end: int
    status: int
    description: str
    resource: dict[str, Any]
    scope: str

    @property
    def job(self) -> str:
        return str(self.attributes.get("messaging.message.id", ""))


class Collector:
    """`spans`: what arrived. `status`: of its answers. While `answering` is not set, requests hang.

    `decoding` false keeps the requests alone, in `bodies`.
    """

    def __init__(self, decoding: bool = True) -> None:
        self.spans: list[CollectedSpan] = []
        self.bodies: list[bytes] = []
        self.status = 200
        self.answering = threading.Event()
        self.answering.set()
        self.requests = 0
        collector = self

        class RequestHandler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests += 1
                collector.answering.wait(60)
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if collector.status == 200:
                    collector.bodies.append(body)
                    if decoding:
                        collector.spans += _decoded(body)
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), RequestHandler)
        self._server.daemon_threads = False  # so that `close` waits for them
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def environment(self, **more: str) -> dict[str, str]:
        """What sends the spans of a program here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            **more,
        }

    def of_job(self, job: str) -> list[CollectedSpan]:
        """The spans of a job's runs, oldest first."""
        found = [span for span in self.spans if span.job == job and span.kind == "consumer"]
        return sorted(found, key=lambda span: span.start)

    def named(self, name: str) -> list[CollectedSpan]:
        """The spans of this name."""
        return [span for span in self.spans if span.name == name]

    def count(self) -> int:
        """Spans in `bodies`."""
        return sum(len(_decoded(body)) for body in list(self.bodies))

    def forget(self) -> None:
        """Drop what arrived."""
        self.bodies.clear()
        self.spans.clear()

    def close(self) -> None:
        """Stop listening."""
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()


def _decoded(body: bytes) -> list[CollectedSpan]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        CollectedSpan(
            span.name,
            KINDS[span.kind],
            SpanRef(span.trace_id.hex(), span.span_id.hex()),
            span.parent_span_id.hex(),
            [SpanRef(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
            _values(span.attributes),
            {event.name: _values(event.attributes) for event in span.events},
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            span.status.code,
            span.status.message,
            _values(of_resource.resource.attributes),
            of_scope.scope.name,
        )
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
