"""Every event that workerd logs, with its meaning; what people count and alert on."""

from __future__ import annotations

EVENTS: dict[str, str] = {
    # -- any role or pool
    "output": "A line that a handler printed or logged, with the job and attempt it belongs to.",
    "peer.dropped": "A connection was closed because the other end broke the protocol; it connects again.",
    "store.available": "The store answers again after it was unavailable.",
    "store.unavailable": "The store does not answer; work goes on by itself when it is back.",
    # -- supervisor
    # -- dispatcher
    # -- pool
    # -- ingester
    # -- gateway
    # -- command line
}
