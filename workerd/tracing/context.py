"""The W3C trace context in a job's `meta`: the keys `traceparent` and `tracestate`."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import msgspec

from workerd.outcome import RunTrace

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
MAX_TRACESTATE_CHARS = 512
"""Minimum that W3C Trace Context requires to be passed on; a longer one is dropped."""
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """A span that others belong to or name: its W3C headers, and what they say."""

    traceparent: str
    tracestate: str
    trace_id: int
    span_id: int
    flags: int


def parse(traceparent: str, tracestate: str = "") -> TraceContext | None:
    """The context of these headers; None where they are malformed or name no span."""
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    if len(tracestate) > MAX_TRACESTATE_CHARS or not tracestate.isprintable():
        tracestate = ""
    # A later version may append fields: what is passed on is what this one knows.
    text = f"00-{trace_id}-{span_id}-{flags}"
    return TraceContext(text, tracestate, int(trace_id, 16), int(span_id, 16), int(flags, 16))


def of_environment() -> TraceContext | None:
    """The span that this program was started by, by the variables TRACEPARENT and TRACESTATE."""
    return parse(os.environ.get("TRACEPARENT", ""), os.environ.get("TRACESTATE", ""))


class _Carrier(msgspec.Struct):
    traceparent: str = ""
    tracestate: str = ""


_decoder = msgspec.json.Decoder(_Carrier)


def of_meta(meta: bytes | None) -> TraceContext | None:
    """The context in a job's `meta`, JSON; None where there is none that can be read."""
    if meta is None or b'"traceparent"' not in meta:
        return None
    try:
        carrier = _decoder.decode(meta)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return parse(carrier.traceparent, carrier.tracestate)


def is_malformed(meta: bytes | None) -> bool:
    """Whether a job's `meta` has a `traceparent` of which `of_meta` makes nothing."""
    if meta is None or b'"traceparent"' not in meta or of_meta(meta) is not None:
        return False
    try:
        value = msgspec.json.decode(meta)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and TRACEPARENT in value


def trace_of(meta: bytes | None) -> RunTrace:
    """The trace of a run whose worker gave none, by its job's `meta`."""
    found = of_meta(meta)
    return RunTrace() if found is None else RunTrace(found.traceparent, found.tracestate)


def into_meta(meta: bytes | None, context: TraceContext) -> bytes | None:
    """The `meta` with this context; None where it is no object, which can take none."""
    value = {} if meta is None else msgspec.json.decode(meta)
    if not isinstance(value, dict):
        return None
    value[TRACEPARENT] = context.traceparent
    value.pop(TRACESTATE, None)
    if context.tracestate:
        value[TRACESTATE] = context.tracestate
    return msgspec.json.encode(value)


def without_context(meta: Any) -> Any:
    """A decoded `meta` without its context, which differs at each call; None where nothing else is in it."""
    if not isinstance(meta, dict) or TRACEPARENT not in meta:
        return meta
    return {key: value for key, value in meta.items() if key not in (TRACEPARENT, TRACESTATE)} or None
