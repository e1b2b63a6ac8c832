"""The span of a run: nothing of it, or of what the handler adds to it, touches the result."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace

from tests.pool.test_executor import Pool, claim_of
from workerd.messages import Traced
from workerd.outcome import RunResult
from workerd.tracing import spans
from workerd.tracing.runs import BATCH_SPANS, RunTracing

RESULT = RunResult(serial=1, kind="returned")


class Link(Pool):
    """Keeps what is sent while the run goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.traced: list[Traced] = []

    def send(self, message: Any) -> None:
        self.traced.append(message)


def test_spans_are_sent_in_batches_and_the_rest_with_the_result() -> None:
    """Those that cannot be encoded are left out and counted."""
    tracing, link = RunTracing("link"), Link()
    run = tracing.begin(claim_of("h", None), link, str)
    assert run is not None
    for number in range(BATCH_SPANS + 2):
        span = tracing.step_tracer.start_span("s")
        span.set_attribute("n", 2**70 if number == BATCH_SPANS + 1 else number)
        span.end()
    ended = run.end(RESULT, None, 0, str)
    assert [len(spans.decode_batch(sent.spans)) for sent in link.traced] == [BATCH_SPANS]
    assert ended.trace is not None
    found = spans.decode(ended.trace.spans or b"")
    assert (len(found.others), found.dropped) == (1, 1)
    assert found.process.name == "process h"


def test_an_error_of_opentelemetry_leaves_the_result_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the beginning and at the end; the log of the run tells it."""
    tracing, link = RunTracing("link"), Link()
    run = tracing.begin(claim_of("h", None), link, str)
    assert run is not None

    def wrong(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a sampler of the program's")

    monkeypatch.setattr(spans, "record", wrong)
    assert run.end(RESULT, None, 0, str) is RESULT
    monkeypatch.setattr(tracing._tracer, "start_span", wrong)
    assert tracing.begin(claim_of("h", None), link, str) is None
    assert capfd.readouterr().err.count("this run is not traced: RuntimeError") == 2
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_span_of_the_runs_own_that_is_too_large_is_cut() -> None:
    """The outcome fits with it."""
    tracing = RunTracing("link")
    run = tracing.begin(claim_of("h", None), Link(), str)
    assert run is not None
    span = trace.get_current_span()
    span.set_attributes({"big": 2**70, "text": "x" * 1_000_000})
    ended = run.end(RESULT, None, 0, str)
    assert ended.trace is not None
    kept = spans.decode(ended.trace.spans or b"").process.attributes
    assert (kept["big"], len(kept["text"])) == (str(2**70), 1000)


@pytest.mark.parametrize(
    ("meta", "malformed"),
    [
        (None, None),
        (b'{"tenant": 7}', None),
        (b'{"traceparent": "00-%s-%s-01"}' % (b"a" * 32, b"b" * 16), None),
        (b'{"traceparent": "nonsense"}', True),
        (b'{"traceparent": 7}', True),
    ],
)
def test_a_span_says_that_its_job_had_a_malformed_context(meta: bytes | None, malformed: bool | None) -> None:
    """It belongs to no other trace, and whoever looks for it there finds out why."""
    tracing = RunTracing("link")
    run = tracing.begin(claim_of("h", None, meta=meta), Link(), str)
    assert run is not None
    ended = run.end(RESULT, None, 0, str)
    assert ended.trace is not None
    process = spans.decode(ended.trace.spans or b"").process
    assert process.attributes.get("workerd.malformed_traceparent") == malformed
    assert bool(process.links) == (meta is not None and b"aaaa" in meta)
