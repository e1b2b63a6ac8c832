"""A handler whose module configures structlog, as applications do."""

from __future__ import annotations

import structlog

structlog.configure(
    processors=[lambda logger, method, event: f"mine: {method} {event}"],
    logger_factory=structlog.PrintLoggerFactory(),
)


def own() -> None:
    structlog.get_logger().error("very bad", order=7)


def fails() -> None:
    raise ValueError("on purpose")
