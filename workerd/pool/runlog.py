"""`ctx.log`: events as lines on standard error, which the pool passes on with job and attempt."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog


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
