"""Recovery times: until a killed process is in service again, until a job enqueued at the kill ended."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql

from benchmarks.chaos_store import Absences
from tests.support.daemon import Daemon
from tests.support.rows import Rows
from workerd.runtime.sockets import poke

LIMIT = 60.0
"""A process not back after so many seconds fails the run."""
LOOK = 0.01
DUPLICATE = (pymysql.err.IntegrityError, sqlite3.IntegrityError)


@dataclass(frozen=True)
class Victim:
    """A killed process: its kind, its pool if any, its pid, and its daemon."""

    kind: str
    pool: str
    pid: int
    daemon: Daemon

    @property
    def handler(self) -> str:
        """The handler whose jobs are affected."""
        return self.pool or "record"

    def replaced(self) -> bool:
        """Whether a successor is in service."""
        status = self.daemon.status()
        if self.kind in ("supervisor", "store"):
            return bool(status.get("ready"))
        if self.kind == "worker":
            workers = status.get("pools", {}).get(self.pool, {}).get("workers") or ()
            states = {worker["pid"]: worker["state"] for worker in workers}
            return bool(states) and self.pid not in states and "starting" not in states.values()
        group, name = ("pools", self.pool) if self.kind == "pool" else ("roles", self.kind)
        slot = status.get(group, {}).get(name, {})
        return slot.get("state") == "up" and slot.get("pid") not in (None, self.pid)


class Recoveries:
    """Measures every recovery in a thread of its own, with a job that is enqueued at the kill.

    Three groups: `alone`; `again`, when another kill overlapped; `store`, when a store outage overlapped.
    """

    def __init__(self, rows: Rows, job_vars: Callable[[], dict[str, Any]], absences: Absences) -> None:
        self._rows = rows
        self._job_vars = job_vars
        self._absences = absences
        self._strikes = 0
        self._threads: list[threading.Thread] = []
        self.enqueued = 0
        self.books: dict[str, dict[str, list[tuple[float, float]]]] = {
            "alone": defaultdict(list),
            "again": defaultdict(list),
            "store": defaultdict(list),
        }
        self.failures: list[str] = []

    def begin(self, victim: Victim, killed: float) -> threading.Thread:
        """Measure from `killed`, monotonic seconds."""
        self._strikes += 1
        crowd = any(thread.is_alive() for thread in self._threads)
        thread = threading.Thread(target=self._measure, args=(victim, killed, self._strikes, crowd))
        self._threads.append(thread)
        thread.start()
        return thread

    @property
    def busy(self) -> bool:
        """Whether a process is not back yet."""
        return any(thread.is_alive() for thread in self._threads)

    def _measure(self, victim: Victim, killed: float, strike: int, crowd: bool) -> None:
        job = uuid.uuid4().bytes
        self._insistently(victim, job)
        served = ended = 0.0
        while not (served and ended):
            now = time.monotonic()
            if now - killed > LIMIT:
                what = "not back" if not served else "back, but a job did not end"
                self.failures.append(f"{victim.kind} was killed and is {what} after {LIMIT:g} s")
                return
            if not served and victim.replaced():
                served = time.monotonic() - killed
            if not ended and self._ended(job):
                ended = time.monotonic() - killed
            time.sleep(LOOK)
        book = "again" if crowd or self._strikes != strike else "alone"
        if victim.kind != "store" and self._absences.met(killed, killed + max(served, ended)):
            book = "store"
        self.books[book][victim.kind].append((served, ended))

    def _insistently(self, victim: Victim, job: bytes) -> None:
        """Enqueue the job, whatever happens to the store meanwhile."""
        while True:
            try:
                self._rows.insert(victim.handler, self._job_vars(), id=job)
            except DUPLICATE:  # the first INSERT did take effect
                break
            except Exception:
                time.sleep(LOOK)
                continue
            break
        self.enqueued += 1
        poke(victim.daemon.folder / "run" / "wake")

    def _ended(self, job: bytes) -> bool:
        with contextlib.suppress(Exception):
            return self._rows.ended(job)
        return False

    def figures(self) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """By group and kind: until in service, until the job had ended; milliseconds."""
        return {
            book: {
                kind: {
                    "in_service": spread([served for served, _ in times]),
                    "next_job": spread([ended for _, ended in times]),
                }
                for kind, times in sorted(kinds.items())
            }
            for book, kinds in self.books.items()
        }


class Pauses:
    """The longest time without a first start while jobs were waiting."""

    def __init__(self, runs: Path, fed: Callable[[], int], absences: Absences) -> None:
        self._runs = runs
        self._fed = fed
        self._absences = absences
        self._seen: set[bytes] = set()
        self.longest = 0.0
        self.longest_with_store = 0.0

    def watch(self, over: threading.Event) -> None:
        """Look every few milliseconds until `over`."""
        since = time.monotonic()
        with self._runs.open("rb") as file:
            while not over.wait(0.005):
                waiting = self._fed() > len(self._seen)
                fresh = {line.split()[0] for line in file.read().splitlines() if line.strip()}
                now = time.monotonic()
                if fresh - self._seen or not waiting:
                    self._note(since, now)
                    self._seen |= fresh
                    since = now
            self._note(since, time.monotonic())

    def _note(self, since: float, now: float) -> None:
        self.longest = max(self.longest, now - since)
        if now - since > self.longest_with_store and not self._absences.met(since, now):
            self.longest_with_store = now - since


def spread(times: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum in milliseconds."""
    ordered = sorted(times)
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered) * 1000, 1),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000, 1),
        "max": round(ordered[-1] * 1000, 1),
    }
