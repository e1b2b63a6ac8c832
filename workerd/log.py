"""One event a line: for people on a terminal, JSON otherwise, with fields to journald.

`configure` is called once before the first fork; every process inherits it. No terminal escape and no
control character gets through, whoever put it into a value, and one event that repeats is counted
instead of written again and again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, cast

import msgspec

from workerd.config.model import LogConfig


class _Later(ModuleType):
    """Stands for a module until something of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def _instead_of(**others: ModuleType | None) -> Iterator[None]:
    """Within it these modules are others, None for those that seem not to be installed."""
    modules = cast(dict[str, ModuleType | None], sys.modules)
    before = {name: modules[name] for name in others if name in modules}
    modules.update(others)
    try:
        yield
    finally:
        for name in others:
            del modules[name]
        modules.update(before)


# structlog imports rich where it is installed, 7 MB in every daemon, for a renderer that is not used, and
# asyncio, 2 MB, for loggers that only a handler may await.
with _instead_of(rich=None, asyncio=_Later("asyncio")):
    import structlog

Event = MutableMapping[str, Any]
Sink = Callable[[str, Event], None]

REPEATS = 5
"""So many equal events are written within WINDOW seconds; the others are counted."""
WINDOW = 10.0
VALUE_LIMIT = 8 * 1024
"""Characters of one value."""

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_NUMBER = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_JOURNAL = "/run/systemd/journal/socket"
# Fields that `journalctl FIELD=value` finds; systemd wants capitals.
_JOURNAL_FIELDS = {"job": "JOB_ID", "handler": "HANDLER", "attempt": "ATTEMPT", "pool": "POOL"}


def get_logger(process: str = "") -> Any:
    """A logger whose events name the process that speaks."""
    return structlog.get_logger(process=process) if process else structlog.get_logger()


def configure(config: LogConfig) -> None:
    """Set level, form and labels for this process and those that it forks."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _Repeats(),
            _harmless,
            _Writer(_sink(config), config.labels),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_NUMBER[config.level]),
        logger_factory=_NoLogger,
        cache_logger_on_first_use=False,
    )


class _NoLogger:
    """What structlog would call at the end; the last processor has written the line already."""

    def __init__(self, *args: Any) -> None:
        pass

    def msg(self, event: object = None, **kw: Any) -> None:
        """Take what the chain returns."""

    debug = info = warning = error = critical = exception = msg


def printable(text: str, limit: int = VALUE_LIMIT) -> str:
    """The text with every control character (terminal escapes too) made visible, cut at `limit`."""
    if len(text) > limit:
        text = text[:limit] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _visible(c) for c in text)


def _visible(char: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char) or (
        f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
    )


def _harmless(logger: Any, method: str, event: Event) -> Event:
    for key, value in event.items():
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            # A traceback keeps its lines; JSON and journald carry them safely, text indents them.
            event[key] = (
                "\n".join(printable(line) for line in value[-65536:].splitlines())
                if key == "exception"
                else printable(value)
            )
        elif not isinstance(value, (int, float, bool, type(None))):
            event[key] = printable(str(value))
    return event


class _Repeats:
    """Counts an event that comes again and again, and says how often when it may speak again."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], tuple[float, int]] = {}

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        if method in ("debug", "info"):
            return event
        key = (
            method,
            event.get("event"),
            event.get("process"),
            event.get("handler"),
            event.get("incident"),
            str(event.get("error")),
        )
        now = time.monotonic()
        began, count = self._seen.get(key, (now, 0))
        if now - began > WINDOW:
            if count > REPEATS:
                event["repeated"] = count - REPEATS
            began, count = now, 0
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (began, count + 1)
        if count >= REPEATS:
            raise structlog.DropEvent
        return event


class _Writer:
    """The end of the chain: adds the labels and hands the event to its sink."""

    def __init__(self, sink: Sink, labels: dict[str, str]) -> None:
        self._sink = sink
        self._labels = labels

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        event.update(self._labels)
        self._sink(str(event.pop("level", method)), event)
        raise structlog.DropEvent


def _sink(config: LogConfig) -> Sink:
    if config.format == "auto" and _stderr_is_journal():
        return _Journal()
    if config.format == "text" or (config.format == "auto" and os.isatty(2)):
        return _Text(colour=os.isatty(2) and not os.environ.get("NO_COLOR"))
    return _json_line


PIPE_ROOM = 4096
"""Bytes that a pipe takes without blocking once it polls as writable (PIPE_BUF)."""
_dropped = 0


_file: Path | None = None
"""What standard error was opened on, if it is a log file of our own."""


def follow(path: Path) -> None:
    """Standard error is this file; once it was moved away, each process opens it anew at its next line."""
    global _file
    _file = path


def reopen() -> None:
    """Open the log file anew if it was moved away; nothing where standard error is no log file of ours."""
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


def _write(line: str) -> None:
    """Write a line to standard error, unless whoever reads it has stopped reading: no log may block."""
    global _dropped
    reopen()
    data = line.encode("utf-8", "backslashreplace")
    if _dropped:
        data = f"{_dropped} lines were dropped: standard error took none\n".encode() + data
    with contextlib.suppress(OSError):
        for start in range(0, len(data), PIPE_ROOM):
            if not select.select((), (2,), (), 0)[1]:
                _dropped += 1
                return
            os.write(2, data[start : start + PIPE_ROOM])
        _dropped = 0


def _json_line(level: str, event: Event) -> None:
    head = {"time": _iso(time.time_ns()), "level": level, "event": event.pop("event", "")}
    _write(msgspec.json.encode({**head, **event}).decode() + "\n")


def _iso(ns: int) -> str:
    second, rest = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)) + f".{rest // 1000:06d}Z"


class _Text:
    """Lines for a person: time, level, process, what happened, then the fields."""

    COLOURS: ClassVar = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, level: str, event: Event) -> None:
        now = time.strftime("%H:%M:%S") + f".{time.time_ns() // 1_000_000 % 1000:03d}"
        shown = f"\x1b[{self.COLOURS.get(level, '0')}m{level:<7}\x1b[0m" if self._colour else f"{level:<7}"
        process, what = event.pop("process", ""), event.pop("event", "")
        exception = event.pop("exception", "")
        fields = " ".join(f"{k}={v}" for k, v in event.items() if v is not None and v != "")
        line = f"{now} {shown} {process:<12} {what}" + (f"  {fields}" if fields else "")
        for part in str(exception).splitlines():
            line += f"\n    {part}"
        _write(line + "\n")


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

    def __call__(self, level: str, event: Event) -> None:
        fields = {
            _JOURNAL_FIELDS.get(k, f"WORKERD_{k.upper()}"): str(v) for k, v in event.items() if v is not None
        }
        # A line that a handler wrote is what its reader looks for; that it is output, its fields say.
        message = str(event.get("line", event.get("event", "")))
        if event.get("error"):
            message += f": {event['error']}"
        fields |= {"MESSAGE": message, "PRIORITY": str(_PRIORITY[level]), "SYSLOG_IDENTIFIER": "workerd"}
        try:
            self._connected().sendto(b"".join(_journal_field(k, v) for k, v in fields.items()), _JOURNAL)
        except OSError:
            _json_line(level, event)

    def _connected(self) -> socket.socket:
        if self._socket is None or self._pid != os.getpid():
            # A forked child closed what it inherited, and needs a socket of its own. The old object must
            # not close its number when it goes: by now that may be another descriptor's.
            if self._socket is not None:
                self._socket.detach()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._pid = os.getpid()
        return self._socket


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if "\n" not in value:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
