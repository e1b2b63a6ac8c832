"""Records of handlers, in the daemon's log: their level and fields, and the attempt that they belong to.

Which attempt that is says the pool, never the record: user code can write any record to its own worker's
pipe, and only to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from workerd import text
from workerd.log import HANDLER_PROCESS, get_logger
from workerd.pool.worker_messages import LogRecord

_RESERVED = frozenset(
    {
        "self", "event", "level", "time", "timestamp", "process", "pool", "worker", "handler", "job",
        "attempt", "line", "exception", "exc_info", "stack", "stack_info", "repeated", "method_name",
    }
)  # fmt: skip
"""Fields of the daemon's own; a handler's field of such a name gets a `_` at its end."""

_decoder = msgspec.json.Decoder(LogRecord)

log = get_logger(HANDLER_PROCESS)


def record_in(data: bytes) -> LogRecord | None:
    """The record, None if it is none."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def relay(record: LogRecord, fields: Mapping[str, Any]) -> None:
    """Log the record; `fields`: what the pool knows of its attempt."""
    own = {_field_name(name): value for name, value in record.fields.items()}
    if record.exception is not None:
        own["exception"] = record.exception
    getattr(log, record.level)(record.event, **own, **fields)


def _field_name(name: str) -> str:
    safe = text.line(name)
    return safe + "_" if safe in _RESERVED else safe
