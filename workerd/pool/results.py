"""What a handler returned or raised, made into a RunResult; nothing here raises."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import msgspec
import structlog

from workerd import text
from workerd.config.validators import size_literal
from workerd.handler import Cancelled, DeadlineExceeded, Failure, Result, Retry, class_name
from workerd.outcome import RunResult
from workerd.workflow import read_spawn


def run_logger(stream: TextIO) -> Any:
    """A structlog logger that writes one readable line an event: `warning: slow image  width=200`."""
    return structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, _line],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    )


def _line(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    level, what = event.pop("level", method), event.pop("event", "")
    exception = event.pop("exception", None)
    fields = " ".join(f"{name}={_shown(value)}" for name, value in event.items())
    line = f"{level}: {what}" + (f"  {fields}" if fields else "")
    return f"{line}\n{exception}" if exception else line


def _shown(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() or c == "=" for c in text) else text


_encode = msgspec.json.Encoder().encode
_OWN_FOLDER = os.path.dirname(__file__) + os.sep
_MOST_CLASSES = 64


class _Unfit(Exception):
    """A part of a return value that cannot be kept; the message says why."""


def returned(serial: int, value: Any, limit: int, *, in_request: bool = True) -> RunResult:
    """The ending of a run that returned; `limit`: bytes of one payload."""
    try:
        if isinstance(value, Result):
            return _result(serial, value, limit, in_request)
        payload, payload_type = _payload(value, limit)
        return RunResult(serial=serial, kind="returned", payload=payload, payload_type=payload_type)
    except _Unfit as error:
        line = str(error)
    except Exception as error:  # a value of the user's may raise wherever it is looked at
        line = f"The return value cannot be read: {line_of(error)}"
    return RunResult(serial=serial, kind="failure", error=text.one_line(line))


def _result(serial: int, result: Result, limit: int, in_request: bool) -> RunResult:
    payload, payload_type = _payload(result.payload, limit)
    return RunResult(
        serial=serial,
        kind="returned" if result.success else "failed",
        payload=payload,
        payload_type=payload_type,
        extras=_part("extras", result.extras, b"{", "a mapping", limit),
        # Of a job that failed nothing follows.
        spawn=_spawn(result.spawn, limit, in_request) if result.success else None,
        error=None if result.success else "The handler returned Result(success=False).",
    )


def _payload(value: Any, limit: int) -> tuple[bytes, Any]:
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return _fitting("payload", data, limit), "bytes"
    return _json("payload", value, limit), "json"


def _part(name: str, value: Any, opening: bytes, expected: str, limit: int) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = dict(value)
    data = _json(name, value, limit)
    if not data.startswith(opening):
        raise _Unfit(f"Result({name}=…) expects {expected}, got {type(value).__name__}.")
    return data


def _spawn(value: Any, limit: int, in_request: bool) -> bytes | None:
    data = _part("spawn", value, b"[", "a list", limit)
    if data is None or data == b"[]":
        return None
    if not in_request:
        raise _Unfit(
            "Result(spawn=…) adds jobs to a request, and this job belongs to none: begin a request of a "
            "workflow with it, or enqueue the jobs with workerd.client."
        )
    try:
        read_spawn(data)
    except ValueError as error:
        raise _Unfit(f"Result(spawn=…): {error}.") from None
    return data


def _json(name: str, value: Any, limit: int) -> bytes:
    try:
        data = _encode(value)
    except Exception as error:  # the value is the user's, and encoding it may run code of theirs
        raise _Unfit(
            f"The {name} cannot be written as JSON: {line_of(error)}. Return bytes, or values that JSON has."
        ) from None
    return _fitting(name, data, limit)


def _fitting(name: str, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise _Unfit(
            f"The {name} has {len(data)} bytes, more than the limit of {limit} ({size_literal(limit)}); "
            "keep it elsewhere and return where it is, or raise ingester.max_payload."
        )
    return data


def unfit_vars(serial: int, error: Exception) -> RunResult:
    """The ending of a job whose vars do not fit its handler."""
    return RunResult(serial=serial, kind="failure", error=text.one_line(str(error)))


def untold(ending: RunResult, error: Exception) -> RunResult:
    """In place of an ending that could not be sent."""
    line = f"How the run ended cannot be told: {line_of(error)}"
    return RunResult(serial=ending.serial, kind="failure", error=text.one_line(line), tainted=True)


def raised(
    serial: int, error: BaseException, interrupted: BaseException | None, cancelled: bool
) -> RunResult:
    """The ending of a run that raised.

    `interrupted`: what the soft signal raised in it, None if nothing: then that is why it ended, unless the
    handler has decided otherwise. `cancelled`: a cancel is asked for.
    """
    if isinstance(error, Retry):
        return RunResult(
            serial=serial,
            kind="retry",
            error=text.one_line(_message(error) or "Retry"),
            after=error.after,
            counted=bool(error.counted),
        )
    if isinstance(error, Failure):
        kind: Any = "failure"
        line = _message(error) or "Failure"
    else:
        kind = _kind(error, interrupted, cancelled)
        line = line_of(error)
    return RunResult(
        serial=serial,
        kind=kind,
        error=text.one_line(line),
        stack=stack_of(error),
        classes=tuple(
            text.clean(class_name(cls)) for cls in type(error).__mro__[:_MOST_CLASSES] if cls is not object
        ),
    )


def _kind(error: BaseException, interrupted: BaseException | None, cancelled: bool) -> str:
    if isinstance(interrupted, Cancelled) or (isinstance(error, Cancelled) and cancelled):
        return "cancelled"
    if isinstance(interrupted, DeadlineExceeded) or isinstance(error, DeadlineExceeded):
        return "deadline"
    return "raised"


def line_of(error: BaseException) -> str:
    """`ValueError: what it says`, whatever its `__str__` does."""
    return text.one_line(f"{type(error).__name__}: {_message(error)}".removesuffix(": "))


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as fault:  # `__str__` is user code too
        return f"(its __str__ raised {type(fault).__name__})"


def stack_of(error: BaseException) -> str | None:
    """The traceback with its causes, without the frames that are ours, cut to size."""
    try:
        told = traceback.TracebackException.from_exception(error, compact=True)
        _leave_out_own(told, set())
        return text.stack("".join(told.format()))
    except BaseException as fault:  # it looks into objects of the user's, which may do anything
        return f"(no traceback: formatting it raised {type(fault).__name__})"


def _leave_out_own(told: traceback.TracebackException | None, seen: set[int]) -> None:
    if told is None or id(told) in seen:
        return
    seen.add(id(told))
    told.stack[:] = [frame for frame in told.stack if not frame.filename.startswith(_OWN_FOLDER)]
    _leave_out_own(told.__cause__, seen)
    _leave_out_own(told.__context__, seen)
    for part in told.exceptions or ():
        _leave_out_own(part, seen)
