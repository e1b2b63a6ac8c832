"""What a handler logs, by `ctx.log`, structlog or `logging`: records in the worker's output pipe.

A record is filtered by `log.level` here, at its source. Handlers of `logging` that user code sets up keep
working; only those that would print to the worker's own output send records instead.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec
import structlog

from workerd import log, text
from workerd.pool.scrubbing import Scrub, keep
from workerd.pool.worker_messages import LogRecord
from workerd.redaction import REDACTED
from workerd.runtime.log_frames import MAX_RECORD_BYTES, FrameWriter

MAX_MESSAGE_CHARS = 8 * 1024
MAX_VALUE_CHARS = 4 * 1024
MAX_EXCEPTION_BYTES = 16 * 1024
MAX_FIELDS = 50
MAX_SHORTENED_BYTES = 16 * 1024
"""Of all fields together, in a record that would be too long otherwise."""
_MAX_INT = 2**63

Level = Literal["debug", "info", "warning", "error", "critical"]

_LEVELS: tuple[tuple[int, Level], ...] = (
    (logging.CRITICAL, "critical"),
    (logging.ERROR, "error"),
    (logging.WARNING, "warning"),
)
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes of a `logging.LogRecord` that are not a caller's `extra`."""

_encoder = msgspec.json.Encoder()


class HandlerLog(Protocol):
    """Where the log of handlers goes: to the pool from a worker, to standard error in a test."""

    def begin(self, serial: int, scrub: Scrub = keep) -> None:
        """A job begins; what the standard `logging` says from now on belongs to it. `scrub`: of all texts."""

    def logger(self, serial: int) -> Any:
        """The `ctx.log` of this job."""


class StandardErrorLog:
    """One line per event, `warning: slow image  width=200`, for the tests of handlers."""

    def begin(self, serial: int, scrub: Scrub = keep) -> None:
        """Nothing to do."""

    def logger(self, serial: int) -> Any:
        """A structlog logger that writes to standard error."""
        return structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, _line],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            cache_logger_on_first_use=False,
        )


class RecordLog:
    """Sends records to the pool through `fd`, a private copy of the output pipe."""

    def __init__(self, fd: int) -> None:
        self._writer = FrameWriter(fd)
        self._serial = 0
        self._scrub: Scrub = keep
        self._root_level = logging.NOTSET

    def begin(self, serial: int, scrub: Scrub = keep) -> None:
        """A job begins; what the standard `logging` says from now on belongs to it."""
        self._serial = serial
        self._scrub = scrub

    def logger(self, serial: int) -> Any:
        """A structlog logger that sends records of this job."""
        return structlog.wrap_logger(
            _Sink(self, serial),
            processors=[structlog.processors.format_exc_info, _as_arguments],
            wrapper_class=structlog.make_filtering_bound_logger(log.level_number()),
            cache_logger_on_first_use=False,
        )

    def send(
        self, level: Level, message: str, fields: Mapping[str, Any], exception: str | None, serial: int = 0
    ) -> None:
        """Write a record, cut to its limits; without a pipe to write to it is lost, as a print would be."""
        scrub = self._scrub
        record = LogRecord(
            level=level,
            event=_cut(scrub(message), MAX_MESSAGE_CHARS),
            serial=serial or self._serial,
            fields={
                _cut(name, 64): _plain(value, scrub)
                for name, value in itertools.islice(fields.items(), MAX_FIELDS)
            },
            exception=None if exception is None else text.stack(scrub(exception), MAX_EXCEPTION_BYTES),
        )
        data = _encoder.encode(record)
        if len(data) > MAX_RECORD_BYTES:
            data = _encoder.encode(_shortened(record))
        with contextlib.suppress(OSError):
            self._writer.write(data)

    def configure_structlog(self, users: Mapping[str, Any] | None) -> None:
        """Let structlog send records too, unless user code has configured it itself."""
        if users is not None:
            structlog.configure(**users)
            return
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.format_exc_info,
                _as_arguments,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(log.level_number()),
            logger_factory=lambda *names: _Sink(self, 0),
            cache_logger_on_first_use=False,
        )

    # -- the standard logging

    def capture_logging(self) -> None:
        """Send what `logging` has no other handler for, or would print to this worker's output."""
        logging.lastResort = _Handler(self, log.level_number())
        printing: Any = logging.StreamHandler
        printing.emit = _emit_of(self, printing.emit)
        if not logging.root.handlers and logging.root.level == logging.WARNING:
            # The default, which nobody chose: `log.level` decides instead.
            self._root_level = log.level_number()
            logging.root.setLevel(self._root_level)

    def respect_configuration(self) -> None:
        """Restore the default level if user code has given the root logger handlers and no level."""
        if logging.root.handlers and logging.root.level == self._root_level:
            logging.root.setLevel(logging.WARNING)


def _shortened(record: LogRecord) -> LogRecord:
    """The record in less than MAX_RECORD_BYTES, although JSON takes up to six bytes for a byte of text."""
    fields, size = dict[str, Any](), 0
    for name, value in record.fields.items():
        size += len(_encoder.encode((name, value)))
        if size <= MAX_SHORTENED_BYTES:
            fields[name] = value
    return msgspec.structs.replace(
        record,
        event=_cut(record.event, 1024),
        fields=fields | {"fields_dropped": len(record.fields) - len(fields)},
        exception=None if record.exception is None else text.stack(record.exception, 4096),
    )


class _Sink:
    """What structlog calls with the arguments that `_as_arguments` made."""

    def __init__(self, records: RecordLog, serial: int) -> None:
        self._records = records
        self._serial = serial

    def msg(self, level: Level, message: str, fields: Mapping[str, Any], exception: str | None) -> None:
        self._records.send(level, message, fields, exception, self._serial)

    debug = info = warning = error = critical = exception = msg


def _as_arguments(logger: Any, method: str, event: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    message, exception = event.pop("event", ""), event.pop("exception", None)
    return ("error" if method == "exception" else method, str(message), event, exception), {}


class _Handler(logging.Handler):
    """Sends each record; in place of `logging.lastResort`, so any handler of user code takes precedence."""

    def __init__(self, records: RecordLog, level: int) -> None:
        super().__init__(level)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _send(self._records, record)
        except Exception:  # a message whose arguments do not fit, or whose `__str__` raises
            self.handleError(record)


def _send(records: RecordLog, record: logging.LogRecord) -> None:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
    exception = record.exc_text
    if record.exc_info and not exception:
        exception = logging.Formatter().formatException(record.exc_info)
    if record.stack_info:
        exception = "\n".join(filter(None, (exception, record.stack_info)))
    records.send(
        _level_name(record.levelno), record.getMessage(), {"logger": record.name} | fields, exception
    )


def _emit_of(
    records: RecordLog, original: Callable[[logging.StreamHandler[Any], logging.LogRecord], None]
) -> Callable[[logging.StreamHandler[Any], logging.LogRecord], None]:
    """`StreamHandler.emit` that sends what would be printed: `logging.basicConfig()` loses no level."""

    def emit(handler: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
        if not _is_own_output(handler.stream):
            original(handler, record)
            return
        try:
            _send(records, record)
        except Exception:  # as the original does
            handler.handleError(record)

    return emit


def _is_own_output(stream: Any) -> bool:
    try:
        return stream.fileno() in (1, 2)
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return False


def _level_name(number: int) -> Level:
    for least, name in _LEVELS:
        if number >= least:
            return name
    return "info" if number >= logging.INFO else "debug"


def _cut(value: str, limit: int) -> str:
    return text.clean(value[:limit] + "…" if len(value) > limit else value)


def _plain(value: Any, scrub: Scrub) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is float or (type(value) is int and -_MAX_INT <= value < _MAX_INT):
        return value if scrub is keep or scrub(str(value)) == str(value) else REDACTED
    try:
        return _cut(scrub(str(value)), MAX_VALUE_CHARS)
    except Exception as error:  # `__str__` is user code
        return f"(its __str__ raised {type(error).__name__})"


# -- lines on standard error


def _line(logger: Any, method: str, event: Any) -> str:
    level, name = event.pop("level", method), event.pop("event", "")
    exception = event.pop("exception", None)
    fields = " ".join(f"{key}={text.field_value(value)}" for key, value in event.items())
    line = f"{level}: {name}" + (f"  {fields}" if fields else "")
    return f"{line}\n{exception}" if exception else line
