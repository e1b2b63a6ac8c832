"""Times, durations, sizes and states as people read them."""

from __future__ import annotations

import json
from typing import Any

from workerd.clock import to_rfc3339, to_text
from workerd.gateway.dashboard.html import Child, Markup, el

JSON_SHOWN = 20_000
"""Characters of a document that a page shows."""


def seconds(value: float | None) -> str:
    """`0.4 ms`, `12.3 s`, `5 min 02 s`, `3 h 20 min`, `2 d 4 h`."""
    if value is None:
        return "–"
    if value < 0.9995:
        return f"{value * 1000:.1f} ms" if value < 0.0995 else f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def microseconds(value: int | None) -> str:
    """A duration that a row holds."""
    return "–" if value is None else seconds(value / 1e6)


def size(value: float | None) -> str:
    """A size in powers of 1024."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(value: float | None) -> str:
    """`1,234`, `12.3`, `0.25`."""
    if value is None:
        return "–"
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: int, cap: int) -> str:
    """A count that was not followed beyond `cap`."""
    return f"{cap:,}+" if value >= cap else f"{value:,}"


def plural(amount: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def moment(us: int | None) -> Child:
    """A store time; the page's script shows how long ago it is, and the time itself beside it."""
    if us is None:
        return "–"
    return el("time", to_text(us)[:19], datetime=to_rfc3339(us), class_="ago")


_TONES = {
    "completed": "good", "up": "good", "ok": "good", "ready": "good", "held": "good", "active": "good",
    "inprogress": "busy", "running": "busy", "starting": "busy", "reloading": "busy", "loading": "busy",
    "new": "wait", "scheduled": "wait", "queuing": "wait", "retry": "warn", "backoff": "warn",
    "failure": "bad", "failed": "bad", "quarantined": "bad", "lost": "bad", "away": "bad",
    "paused": "warn", "cancelled": "mute", "draining": "warn", "stopping": "warn",
}  # fmt: skip
_NAMES = {"inprogress": "running", "new": "waiting"}


def badge(state: str, more: str | None = None) -> Markup:
    """A state, told by its word as well as by its colour."""
    name = _NAMES.get(state, state)
    return el("span", name, f" · {more}" if more else None, class_=f"badge {_TONES.get(state, 'mute')}")


def document(value: Any) -> str:
    """A JSON value over several lines, cut where it becomes too long to look at."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= JSON_SHOWN else text[:JSON_SHOWN] + "\n… cut here"


def short_id(text: str) -> str:
    """What tells ids of one list apart: UUIDv7 begin alike, their ends do not."""
    return f"{text[:8]}…{text[-6:]}"
