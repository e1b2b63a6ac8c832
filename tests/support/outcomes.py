"""Builds outcomes with default fields."""

from __future__ import annotations

from typing import Any

from workerd.job import Status, new_id
from workerd.outcome import Outcome, Reason, Usage

NODE = bytes(range(16))


def outcome(**given: Any) -> Outcome:
    """Build the outcome of a successful attempt of a new job; `given` overrides fields."""
    fields: dict[str, Any] = {
        "id": new_id(),
        "attempt": 1,
        "claimed_at": 1_700_000_000_000_000,
        "handler": "echo",
        "status": Status.COMPLETED,
        "reason": Reason.OK,
        "success": True,
        "payload": b"null",
        "payload_type": "json",
        "usage": Usage(run_us=1000, cpu_us=900, max_rss_kib=20_000),
        "node_id": NODE,
    }
    return Outcome(**{**fields, **given})
