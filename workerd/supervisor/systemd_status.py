"""The status line for the service manager, its watchdog, and more time when it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from workerd.runtime import systemd
from workerd.text import plural

EXTENSION_S = 15.0
"""Requested every second while the node starts, reloads or drains: each phase has its own limit."""


class SystemdStatus:
    """Sends the status to the service manager, only when it has changed."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._sent = ""

    def update(self, document: dict[str, Any], progressing: bool) -> None:
        """Send what changed in the document of `workerd status`; feed the watchdog if `progressing`."""
        lines = []
        sentence = status_sentence(document, time.monotonic())
        if sentence != self._sent:
            self._sent = sentence
            lines.append(systemd.status(sentence))
        if document["state"] in ("starting", "reloading", "draining"):
            lines.append(systemd.extend(EXTENSION_S))
        if progressing:
            lines.append(systemd.alive())
        if lines:
            self._notify("\n".join(lines))


def status_sentence(document: dict[str, Any], now: float) -> str:
    """`Ready: 3 jobs running, 2 waiting, the slowest is resize 0190… for 12 s; held back: email`.

    `now`: monotonic seconds. Durations are in whole seconds, so that a quiet node's sentence stays the same.
    """
    pools = document.get("pools", {})
    workers = [worker for pool in pools.values() for worker in pool.get("workers") or ()]
    running = [worker for worker in workers if worker.get("job")]
    waiting = sum(pool.get("waiting", 0) for pool in pools.values())
    parts = [f"{plural(len(running), 'job')} running, {waiting} waiting"]
    if running:
        slowest = min(running, key=lambda worker: float(worker["since"]))
        seconds = max(0, int(now - slowest["since"]))
        parts[0] += f", the slowest is {slowest['handler']} {slowest['job']} for {seconds} s"
    quarantined = [name for name, pool in pools.items() if pool.get("quarantined")]
    if quarantined:
        parts.append(f"held back: {', '.join(quarantined)}")
    troubles = [
        f"{name} {role['trouble']}" for name, role in document.get("roles", {}).items() if role.get("trouble")
    ]
    return f"{document['state'].capitalize()}: {'; '.join(parts + troubles)}"
