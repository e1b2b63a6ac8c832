"""The trace context in `meta`: what is read, what is refused, what is written."""

from __future__ import annotations

import json

import pytest

from workerd.tracing import context
from workerd.tracing.context import into_meta, of_meta, parse, without_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"


def test_a_header_names_a_span() -> None:
    """A later version may have more fields, which are not passed on."""
    found = parse(HEADER, "vendor=1")
    assert found is not None
    assert (found.trace_id, found.span_id, found.flags) == (int(TRACE, 16), int(SPAN, 16), 1)
    assert (found.traceparent, found.tracestate) == (HEADER, "vendor=1")
    later = parse(f"cc-{TRACE}-{SPAN}-01-more")
    assert later is not None
    assert later.traceparent == HEADER


@pytest.mark.parametrize(
    "header",
    [
        "", "rubbish", f"00-{TRACE}-{SPAN}", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{SPAN}-01", f"{HEADER}-more", f"{HEADER}\n\n01",
        "0" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_header_is_ignored(header: str) -> None:
    """A job with it runs as one without."""
    assert parse(header) is None
    assert of_meta(json.dumps({"traceparent": header}).encode()) is None


def test_a_tracestate_that_is_too_long_is_dropped() -> None:
    """The span is passed on without it, as it is with control characters."""
    for state in ("x" * 513, "a=1\r\nb"):
        found = parse(HEADER, state)
        assert found is not None
        assert found.tracestate == ""


@pytest.mark.parametrize(
    "meta", [None, b"{}", b'"traceparent"', b'{"traceparent": 1}', b'{"traceparent"', b'["traceparent"]']
)
def test_a_meta_without_a_context_has_none(meta: bytes | None) -> None:
    """Whatever JSON it is."""
    assert of_meta(meta) is None


def test_a_context_is_added_to_an_object_alone() -> None:
    """What else is in it stays; text and lists have no place for it."""
    found = parse(HEADER, "vendor=1")
    assert found is not None
    assert json.loads(into_meta(None, found) or b"") == {"traceparent": HEADER, "tracestate": "vendor=1"}
    bare = parse(HEADER)
    assert bare is not None
    changed = into_meta(b'{"mine": 1, "tracestate": "old"}', bare)
    assert json.loads(changed or b"") == {"mine": 1, "traceparent": HEADER}
    assert into_meta(b'"text"', found) is None
    assert into_meta(b"[1]", found) is None


def test_a_repeat_is_compared_without_its_context() -> None:
    """Each call has a span of its own."""
    assert without_context({"traceparent": HEADER, "tracestate": "x"}) is None
    assert without_context({"traceparent": HEADER, "mine": 1}) == {"mine": 1}
    assert without_context({"mine": 1}) == {"mine": 1}
    assert without_context("text") == "text"


def test_a_program_is_started_by_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the environment tells it."""
    monkeypatch.setenv("TRACEPARENT", HEADER)
    assert context.of_environment() == parse(HEADER)
