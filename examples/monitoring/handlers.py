"""A handler with a metric of its own, which /metrics shows beside those of workerd."""

from __future__ import annotations

from prometheus_client import Counter

BYTES = Counter("shop_bytes_total", "Bytes worked on.")


def work(size: int) -> int:
    """Count some bytes."""
    BYTES.inc(size)
    return size
