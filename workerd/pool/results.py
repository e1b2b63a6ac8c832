"""Makes a RunResult of what a handler returned or raised; nothing here raises."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from typing import Any

from workerd import fingerprint as fingerprints
from workerd import json_text, text, wrapping
from workerd.config.quantities import size_literal
from workerd.errors import InvalidValue
from workerd.fingerprint import Frame
from workerd.handler import Cancelled, DeadlineExceeded, Failure, Interrupted, Result, Retry, class_name
from workerd.outcome import RunResult
from workerd.policy import EXIT_PREFIX
from workerd.pool.program import ProgramEnded
from workerd.pool.scrubbing import Scrub, keep
from workerd.spawned_jobs import read_spawn

_OWN_FILES = (os.path.dirname(__file__) + os.sep, wrapping.__file__)
_MAX_CLASSES = 64
_BINARY = (bytes, bytearray, memoryview)


class _Unstorable(Exception):
    """Part of a return value cannot be stored; the message says why."""


def returned(
    serial: int, value: Any, limit: int, *, in_request: bool = True, scrub: Scrub = keep
) -> RunResult:
    """The result of a run that returned `value`; `limit`: bytes of one payload; `scrub`: of its error."""
    try:
        if isinstance(value, Result):
            return _result(serial, value, limit, in_request)
        payload, payload_type = _payload(value, limit)
        return RunResult(serial=serial, kind="returned", payload=payload, payload_type=payload_type)
    except _Unstorable as error:
        line = str(error)
    except Exception as error:  # any access to a user's value may run code that raises
        line = f"The return value cannot be read: {line_of(error)}"
    return RunResult(serial=serial, kind="failure", error=text.one_line(scrub(line)))


def _result(serial: int, result: Result, limit: int, in_request: bool) -> RunResult:
    payload, payload_type = _payload(result.payload, limit)
    return RunResult(
        serial=serial,
        kind="returned" if result.success else "failed",
        payload=payload,
        payload_type=payload_type,
        extras=_part("extras", result.extras, b"{", "a mapping", limit),
        # A failed job spawns nothing.
        spawn=_spawn(result.spawn, limit, in_request) if result.success else None,
        error=None if result.success else "The handler returned Result(success=False).",
    )


def _payload(value: Any, limit: int) -> tuple[bytes, Any]:
    if isinstance(value, _BINARY):
        data = bytes(value)
        return _within_limit("payload", data, limit), "bytes"
    return _json("payload", value, limit), "json"


def _part(name: str, value: Any, opening: bytes, expected: str, limit: int) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = dict(value)
    data = _json(name, value, limit)
    if not data.startswith(opening):
        raise _Unstorable(f"Result({name}=…) expects {expected}, got {type(value).__name__}.")
    return data


def _spawn(value: Any, limit: int, in_request: bool) -> bytes | None:
    data = _part("spawn", value, b"[", "a list", limit)
    if data is None or data == b"[]":
        return None
    if not in_request:
        raise _Unstorable(
            "Result(spawn=…) adds jobs to a request, and this job belongs to none: submit a request of a "
            "workflow with it, or enqueue the jobs with workerd.client."
        )
    try:
        read_spawn(data)
    except ValueError as error:
        raise _Unstorable(f"Result(spawn=…): {error}.") from None
    return data


def _json(name: str, value: Any, limit: int) -> bytes:
    try:
        data = json_text.encode(name, value)
    except InvalidValue as error:
        raise _Unstorable(f"The {name} cannot be written as JSON: {error}.") from None
    except Exception as error:  # encoding a user's value may run code that raises
        raise _Unstorable(
            f"The {name} cannot be written as JSON: {line_of(error)}. "
            "Return bytes, or values that JSON can represent."
        ) from None
    return _within_limit(name, data, limit)


def _within_limit(name: str, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise _Unstorable(
            f"The {name} has {len(data)} bytes, more than the limit of {limit} ({size_literal(limit)}); "
            "store it elsewhere and return its location, or raise ingester.max_payload."
        )
    return data


def unrunnable(serial: int, error: str) -> RunResult:
    """The result of a job that cannot be run: its vars do not fit, or its handler is unknown."""
    return RunResult(
        serial=serial, kind="failure", error=text.one_line(error), classes=(fingerprints.BAD_VARS,)
    )


def unsendable(result: RunResult, error: Exception) -> RunResult:
    """Replaces a result that cannot be sent."""
    line = f"The result of the run cannot be sent: {line_of(error)}"
    return RunResult(serial=result.serial, kind="failure", error=text.one_line(line), tainted=True)


def raised(
    serial: int,
    error: BaseException,
    interrupted: BaseException | None,
    cancelled: bool,
    scrub: Scrub = keep,
) -> RunResult:
    """The result of a run that raised.

    `interrupted`: what the soft signal raised in it, else None; it decides the kind unless the handler
    raised Retry or Failure. `cancelled`: a cancel was requested. `scrub`: of error, stack and the names of
    its classes.
    """
    if isinstance(error, Retry):
        return RunResult(
            serial=serial,
            kind="retry",
            error=text.one_line(scrub(_message(error)) or "Retry"),
            after=error.after,
            counted=bool(error.counted),
            hold=error.hold if error.hold in ("group", "limit") else None,
        )
    if isinstance(error, ProgramEnded):
        return _program_ended(serial, error, scrub)
    if isinstance(error, Failure):
        kind: Any = "failure"
        line = scrub(_message(error)) or "Failure"
    else:
        kind = _kind(error, interrupted, cancelled)
        line = line_of(error, scrub)
    return RunResult(
        serial=serial,
        kind=kind,
        error=text.one_line(line),
        stack=stack_of(error, scrub),
        classes=tuple(
            text.clean(scrub(class_name(cls)))
            for cls in type(error).__mro__[:_MAX_CLASSES]
            if cls is not object
        ),
        frames=_frames_of(error),
    )


def _program_ended(serial: int, error: ProgramEnded, scrub: Scrub) -> RunResult:
    status = error.status
    exit_classes = (f"{EXIT_PREFIX}{status}", *map(class_name, (Exception, BaseException)))
    return RunResult(
        serial=serial,
        kind=error.kind,
        error=text.one_line(scrub(str(error))),
        classes=() if status < 0 else exit_classes,  # a crash raises nothing
        exit_signal=-status if status < 0 else None,
        exit_code=status if status >= 0 else None,
    )


def _frames_of(error: BaseException) -> tuple[str, ...]:
    """The innermost frames of the user's code; of a group those of its first exception, with its class."""
    member = error
    for _ in range(_MAX_CLASSES):
        if not isinstance(member, BaseExceptionGroup) or not member.exceptions:
            break
        member = member.exceptions[0]
    frames = fingerprints.user_frames(
        Frame(file, frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(member.__traceback__)
        if not (file := frame.f_code.co_filename).startswith(_OWN_FILES)
    )
    if member is not error:
        frames = (f"{class_name(type(member))} {' '.join(frames[:1])}", *frames[1:])
    return tuple(map(text.clean, frames))


def _kind(error: BaseException, interrupted: BaseException | None, cancelled: bool) -> str:
    if isinstance(interrupted, Interrupted):
        return "interrupted"
    if isinstance(interrupted, Cancelled) or (isinstance(error, Cancelled) and cancelled):
        return "cancelled"
    if isinstance(interrupted, DeadlineExceeded) or isinstance(error, DeadlineExceeded):
        return "deadline"
    return "raised"


def line_of(error: BaseException, scrub: Scrub = keep) -> str:
    """`ValueError: message` on one line, whatever its `__str__` does."""
    # Scrubbed before it is cut: a part of a value would not be found.
    return text.one_line(scrub(f"{type(error).__name__}: {_message(error)}".removesuffix(": ")))


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as nested:  # `__str__` is user code
        return f"(its __str__ raised {type(nested).__name__})"


def stack_of(error: BaseException, scrub: Scrub = keep) -> str | None:
    """The traceback with its causes, without the pool's frames, cut to STACK_LIMIT."""
    try:
        trace = traceback.TracebackException.from_exception(error, compact=True)
        _remove_own_frames(trace, set())
        return text.stack(scrub("".join(trace.format())))
    except BaseException as nested:  # formatting calls methods of the user's objects
        return f"(no traceback: formatting it raised {type(nested).__name__})"


def _remove_own_frames(trace: traceback.TracebackException | None, seen: set[int]) -> None:
    if trace is None or id(trace) in seen:
        return
    seen.add(id(trace))
    trace.stack[:] = [frame for frame in trace.stack if not frame.filename.startswith(_OWN_FILES)]
    _remove_own_frames(trace.__cause__, seen)
    _remove_own_frames(trace.__context__, seen)
    for part in trace.exceptions or ():
        _remove_own_frames(part, seen)
