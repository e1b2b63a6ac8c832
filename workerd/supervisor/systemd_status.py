"""The status line for the service manager, and more time when it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from workerd.runtime import systemd

MORE_TIME = 15.0
"""Seconds that are asked for, every second, while the node starts or drains: each phase has its own limit."""


class SystemdStatus:
    """Tells the service manager once a second, the status only when it has changed."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._said = ""

    def look(self, document: dict[str, Any], progressing: bool) -> None:
        """`document` as in `workerd status`; without progress the watchdog is not fed."""
        lines = []
        sentence = status_sentence(document, time.monotonic())
        if sentence != self._said:
            self._said = sentence
            lines.append(systemd.status(sentence))
        if document["state"] in ("starting", "draining"):
            lines.append(systemd.extend(MORE_TIME))
        if progressing:
            lines.append(systemd.alive())
        if lines:
            self._notify("\n".join(lines))


def status_sentence(document: dict[str, Any], now: float) -> str:
    """`Ready: 3 jobs running, 2 waiting, the slowest is resize 0190… for 12 s; held back: email`.

    `now`: monotonic seconds, to the second, so that a quiet node's sentence stays the same.
    """
    pools = document.get("pools", {})
    workers = [worker for pool in pools.values() for worker in pool.get("workers") or ()]
    running = [worker for worker in workers if worker.get("job")]
    waiting = sum(pool.get("waiting", 0) for pool in pools.values())
    parts = [f"{_jobs(len(running))} running, {waiting} waiting"]
    if running:
        slowest = min(running, key=lambda worker: float(worker["since"]))
        seconds = max(0, int(now - slowest["since"]))
        parts[0] += f", the slowest is {slowest['handler']} {slowest['job']} for {seconds} s"
    held = [name for name, pool in pools.items() if pool.get("quarantined")]
    if held:
        parts.append(f"held back: {', '.join(held)}")
    troubles = [
        f"{name} {role['trouble']}" for name, role in document.get("roles", {}).items() if role.get("trouble")
    ]
    return f"{document['state'].capitalize()}: {'; '.join(parts + troubles)}"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
