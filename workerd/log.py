"""The log: one event a line, as text on a terminal, as JSON elsewhere, with fields to journald.

`configure` is called once before the first fork; every process inherits it. Control characters in values
are escaped, repeated events are counted instead of written, and writing never blocks.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import socket
import struct
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from workerd import lean_imports
from workerd.config.model import LogConfig
from workerd.text import line

# threadlocal alone imports greenlet, where that is installed.
with lean_imports.without("rich", deferred=("asyncio", "structlog.stdlib", "structlog.threadlocal")):
    import structlog

Event = MutableMapping[str, Any]

MAX_REPEATS = 5
REPEAT_WINDOW_S = 10.0
"""More than so many equal events within this window are counted instead of written."""
MAX_VALUE_CHARS = 8 * 1024
MAX_TRACEBACK_CHARS = 64 * 1024

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_level = _LEVELS["info"]
_DAY_BYTES = 8  # YYYYMMDD
_shown_day: mmap.mmap | None = None
"""The day of the last line as text."""
HANDLER_PROCESS = "worker"
"""The process that records of handlers name; none of workerd's own events does."""
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_JOURNAL = "/run/systemd/journal/socket"
_JOURNAL_FIELDS = {"job": "JOB_ID", "handler": "HANDLER", "attempt": "ATTEMPT", "pool": "POOL"}
"""Fields that `journalctl FIELD=value` finds by a name of their own; the others begin with WORKERD_."""
_NOT_IN_JOURNAL_NAME = re.compile("[^A-Z0-9_]")


def get_logger(process: str) -> Any:
    """A logger whose events name the role or pool that logs them."""
    return structlog.get_logger(process=process)


debugging = False
"""Whether the level is `debug`: asked before anything is made ready for a line about a single job."""


def level_number() -> int:
    """The level that was configured, as the standard `logging` numbers it."""
    return _level


def configure(config: LogConfig) -> None:
    """Set level, format and labels for this process and those that it forks."""
    global _level, debugging
    _level = _LEVELS[config.level]
    debugging = config.level == "debug"
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _CountRepeats(),
            _escape_values,
            # Labels follow the event's fields and never replace one.
            lambda logger, method, event: {**event, **config.labels, **event},
            *_renderers(config),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level),
        logger_factory=_StandardError,
        cache_logger_on_first_use=False,
    )


def _renderers(config: LogConfig) -> list[Any]:
    as_json = [_json_line]
    if config.format == "auto" and _stderr_is_journal():
        return [_Journal(), *as_json]  # JSON when the journal does not take an event
    if config.format == "text" or (config.format == "auto" and os.isatty(2)):
        return [
            _TextTime(),
            structlog.dev.ConsoleRenderer(
                colors=os.isatty(2) and not os.environ.get("NO_COLOR"),
                exception_formatter=structlog.dev.plain_traceback,
                sort_keys=False,
                timestamp_key="time",
            ),
        ]
    return as_json


class _TextTime:
    """The local time of an event; with the date in the first line of a day, whichever process writes it."""

    def __init__(self) -> None:
        global _shown_day
        if _shown_day is None:
            # Shared by all processes that are forked later.
            _shown_day = mmap.mmap(-1, _DAY_BYTES)

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        assert _shown_day is not None
        second, ns = divmod(time.time_ns(), 1_000_000_000)
        local = time.localtime(second)
        day = f"{local.tm_year:04}{local.tm_mon:02}{local.tm_mday:02}".encode()
        form = "%H:%M:%S"
        if _shown_day[:_DAY_BYTES] != day[:_DAY_BYTES]:
            _shown_day[:_DAY_BYTES] = day[:_DAY_BYTES]
            form = f"%Y-%m-%d {form}"
        event["time"] = f"{time.strftime(form, local)}.{ns // 1000:06d}"
        return event


def _escape_values(logger: Any, method: str, event: Event) -> Event:
    """Without values that are None; what is left can be written on one line."""
    escaped: Event = {}
    for key, value in event.items():
        if isinstance(value, (int, float)):
            escaped[key] = value
        elif key == "exception":
            # Its lines are indented, so that no text in it can pass for an event of its own.
            lines = str(value)[-MAX_TRACEBACK_CHARS:].splitlines()
            escaped[key] = "\n".join("    " + line(part) for part in lines)
        elif value is not None:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            escaped[key] = line(text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…")
    return escaped


class _CountRepeats:
    """Drops a warning or error that repeats, and adds the number dropped when it may be logged again."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], tuple[float, int]] = {}

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        if method in ("debug", "info") or event.get("process") == HANDLER_PROCESS:
            return (
                event  # what a handler logs is bounded for each attempt, and differs in fields unknown here
            )
        names = ("event", "process", "handler", "incident", "error")
        key = (method, *(str(event.get(name)) for name in names))
        now = time.monotonic()
        began, count = self._seen.get(key, (now, 0))
        if now - began > REPEAT_WINDOW_S:
            if count > MAX_REPEATS:
                event["repeated"] = count - MAX_REPEATS
            began, count = now, 0
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (began, count + 1)
        if count >= MAX_REPEATS:
            raise structlog.DropEvent
        return event


def _json_line(logger: Any, method: str, event: Event) -> str:
    second, ns = divmod(time.time_ns(), 1_000_000_000)
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)) + f".{ns // 1000:06d}Z"
    head = {"time": at, "level": event.pop("level"), "event": event.pop("event", "")}
    return msgspec.json.encode({**head, **event}).decode()


# -- standard error

PIPE_BUF_BYTES = 4096
"""What a pipe takes without blocking once it polls as writable."""
_dropped_lines = 0
_file: Path | None = None
"""The log file that standard error was opened on, if it is one of workerd's own."""


def follow(path: Path) -> None:
    """Standard error is this file; each process reopens it at its next line once it was moved away."""
    global _file
    _file = path


def reopen() -> None:
    """Reopen the log file if it was moved away; nothing happens when standard error is something else."""
    if _file is None:
        return
    try:
        there, ours = _file.stat(), os.fstat(2)
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            return
    except FileNotFoundError:
        pass
    except OSError:
        return
    with contextlib.suppress(OSError):
        fd = os.open(_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


class _StandardError:
    """What structlog writes rendered events to; a line is dropped when standard error takes none.

    Not structlog's own loggers: they block, and hold a lock that a forked child may inherit locked.
    """

    def __init__(self, *args: Any) -> None:
        pass

    def msg(self, text: str) -> None:
        """Write an event with its newline."""
        global _dropped_lines
        reopen()
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        if _dropped_lines:
            data = f"{_dropped_lines} lines were dropped: standard error took none\n".encode() + data
        with contextlib.suppress(OSError):
            for start in range(0, len(data), PIPE_BUF_BYTES):
                if not select.select((), (2,), (), 0)[1]:
                    _dropped_lines += 1
                    return
                os.write(2, data[start : start + PIPE_BUF_BYTES])
            _dropped_lines = 0

    debug = info = warning = error = critical = exception = msg


# -- journald


def _stderr_is_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not inode:
        return False
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino)) and os.path.exists(_JOURNAL)


class _Journal:
    """systemd's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): every field can be searched for."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._pid = 0

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        fields = {_journal_name(key): str(value) for key, value in event.items() if key != "level"}
        # The message of a handler's output is its line; WORKERD_EVENT says that it is output.
        message = str(event.get("line" if event.get("event") == "output" else "event", ""))
        if event.get("error"):
            message += f": {event['error']}"
        priority = str(_PRIORITIES[event["level"]])
        fields |= {"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": "workerd"}
        try:
            self._connected().sendto(b"".join(_journal_field(k, v) for k, v in fields.items()), _JOURNAL)
        except OSError:
            return event
        raise structlog.DropEvent

    def _connected(self) -> socket.socket:
        if self._socket is None or self._pid != os.getpid():
            # A forked child has closed what it inherited. The old object must not close its number when
            # it is freed: by now that may be another descriptor's.
            if self._socket is not None:
                self._socket.detach()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._pid = os.getpid()
        return self._socket


def _journal_name(key: str) -> str:
    """Handlers choose names of fields too: what journald would refuse, or read as more fields, is `_`."""
    return _JOURNAL_FIELDS.get(key) or "WORKERD_" + _NOT_IN_JOURNAL_NAME.sub("_", key.upper())[:56]


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if "\n" not in value:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
