"""Chaos: under steady load, keep killing random processes of the tree, and the store now and then.

    python benchmarks/chaos.py --jobs 100000 --seed 1 --store mariadb

Runs are counted by the handler itself, in a file outside of workerd; recorded jobs are read from the store
with plain SQL. Prints one JSON line: lost, recorded twice, run more than once (allowed, counted), the longest
pause while jobs were waiting, and for each kind of process the time until it was in service again and until
a job enqueued at the kill had ended; separately, where another kill or an outage of the store overlapped.
Exit status 1 if anything was lost or recorded twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_recovery import Pauses, Recoveries, Victim
from benchmarks.chaos_store import Absences, Target
from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows
from workerd.runtime.sockets import poke

sys.path.insert(0, str(Path(__file__).parents[1]))


KINDS = ("supervisor", "dispatcher", "ingester", "pool", "worker")
HASTE = 0.25
"""Share of kills that do not wait until the process is back."""
CHUNKS = 20
"""Inserts per second; a steady load, so that pauses show."""

CONFIG = f"""
[shutdown]
drain = "5s"
[dispatcher]
lease = "5s"
[defaults]
path = ["{ROOT}"]
max_attempts = 20
max_crashes = 1000
backoff = {{ first = "10ms", factor = 1.0, max = "10ms" }}
restart = {{ intensity = 100000, period = "1s" }}
[handlers.record]
call = "tests.support.handlers:record"
workers = 2
[handlers.record2]
call = "tests.support.handlers:record"
workers = 1
"""


class Chaos:
    """One run: enqueues, kills, watches, counts."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.chance = random.Random(options.seed)
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.touch()
        self.target = Target(options.store, folder)
        self.daemons = [
            Daemon(folder / f"n{number}", url, self.config_of(number), name=f"n{number}")
            for number, url in enumerate(self.node_urls(), 1)
        ]
        self.rows = Rows(self.target.urls[0])
        self.kinds = tuple(options.kinds.split(","))
        self.enqueued = 0
        self.kills: Counter[str] = Counter()
        self.absences = Absences()
        self.recoveries = Recoveries(self.rows, self.job_vars, self.absences)
        self.pauses = Pauses(self.runs, lambda: self.enqueued + self.recoveries.enqueued, self.absences)
        self.done = threading.Event()

    def node_urls(self) -> list[str]:
        """The store's URL for each node."""
        return self.target.urls

    def config_of(self, number: int) -> str:
        """The configuration of a node, counted from 1."""
        return CONFIG

    def job_vars(self) -> dict[str, Any]:
        """The vars of a job."""
        return {"path": str(self.runs)}

    # -- load

    def feed(self) -> None:
        """Enqueue all jobs with plain SQL, whatever happens to the store meanwhile."""
        left = self.options.jobs
        chunk = max(1, int(self.options.rate / CHUNKS))
        while left and not self.done.is_set():
            count = min(chunk, left)
            handler = "record2" if left % 3 == 0 else "record"
            try:
                with self.absences.watched():
                    self.rows.insert_many(handler, [self.job_vars() for _ in range(count)])
            except Exception:  # the store was killed: this whole statement took no effect, or is repeated
                self.done.wait(0.2)
                continue
            left -= count
            self.enqueued += count
            for daemon in self.daemons:
                poke(daemon.folder / "run" / "wake")
            self.done.wait(count / self.options.rate)

    # -- faults

    def victim(self, kind: str) -> Victim | None:
        """A living process of that kind, if there is one just now."""
        daemon = self.chance.choice(self.daemons)
        if kind == "supervisor":  # not by title: a forked child has its parent's until it sets its own
            assert daemon.process is not None
            return Victim(kind, "", daemon.process.pid, daemon)
        found = []
        for process in daemon.tree():
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.cmdline()).split()
                if words[:2] == ["workerd:", kind]:
                    pool = words[2].split("/")[0] if kind in ("pool", "worker") else ""
                    found.append(Victim(kind, pool, process.pid, daemon))
        return self.chance.choice(found) if found else None

    def strike(self) -> None:
        """Kill one process; usually wait until it is back before the next kill."""
        self.restart_dead()
        victim = self.victim(self.chance.choice(self.kinds))
        if victim is None:
            return
        killed = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
            self.kills[victim.kind] += 1
        if victim.kind == "supervisor":
            assert victim.daemon.process is not None
            victim.daemon.process.wait()
            self.restart_dead()
        recovery = self.recoveries.begin(victim, killed)
        if self.chance.random() > HASTE:
            self.see_back(recovery)

    def strike_store(self) -> None:
        """Kill the store, leave it down for a while, and measure how work resumes."""
        if self.options.store == "sqlite":
            return
        self.kills["store"] += 1
        with self.absences.known():
            self.target.kill(self.chance)
            self.done.wait(self.chance.uniform(0.2, 2.0))
            self.target.revive()
        store = Victim("store", "", 0, self.chance.choice(self.daemons))
        self.see_back(self.recoveries.begin(store, time.monotonic()))

    def see_back(self, recovery: threading.Thread) -> None:
        """Wait until the killed process is back; restart a daemon that ended."""
        while recovery.is_alive():
            self.restart_dead()
            recovery.join(0.01)

    def restart_dead(self) -> None:
        """Restart a daemon that ended, as a service manager would."""
        for daemon in self.daemons:
            if daemon.process is not None and daemon.process.poll() is not None:
                daemon.spawn()

    def waiting(self) -> int:
        """Jobs that have not ended; 1 while the store is unavailable."""
        try:
            counts = self.rows.counts()
        except Exception:
            return 1
        return sum(counts.get(status, 0) for status in ("new", "scheduled", "inprogress"))

    # -- the run

    def run(self) -> dict[str, Any]:
        """The whole run; returns the figures."""
        self.daemons[0].cli("migrate")
        for daemon in self.daemons:
            daemon.start()
        began = time.monotonic()
        feeder = threading.Thread(target=self.feed)
        watcher = threading.Thread(target=self.pauses.watch, args=(self.done,))
        feeder.start()
        watcher.start()
        next_store = began + self.options.store_every
        while feeder.is_alive() or (
            self.kills.total() < self.options.kills and time.monotonic() - began < self.options.limit
        ):
            if time.monotonic() >= next_store:
                next_store = time.monotonic() + self.options.store_every
                self.strike_store()
            else:
                self.strike()
            self.done.wait(self.chance.uniform(0.2, 0.8))
        feeder.join()
        while self.recoveries.busy:
            self.restart_dead()
            time.sleep(0.01)
        with contextlib.suppress(AssertionError):
            eventually(self.all_ended, within=180, every=0.2)
        self.settle()
        self.done.set()
        watcher.join()
        seconds = time.monotonic() - began
        unsettled = self.waiting()
        for daemon in self.daemons:
            daemon.end()
        return self.figures(seconds, unsettled)

    def settle(self) -> None:
        """What is to be awaited once all jobs have ended."""

    def all_ended(self) -> bool:
        self.restart_dead()
        return self.waiting() == 0

    def figures(self, seconds: float, unsettled: int) -> dict[str, Any]:
        """Compare the store with the file of runs."""
        runs = Counter(line.split()[0] for line in self.runs.read_text().splitlines())
        ends = self.rows.sql(
            "SELECT id, SUM(CASE WHEN status = 'completed' THEN 1 ELSE 0 END) AS ends,"
            " SUM(CASE WHEN status = 'retry' THEN 0 ELSE 1 END) AS states FROM workerd_jobs GROUP BY id"
        )
        sent = self.options.jobs + self.recoveries.enqueued
        ids = {uuid_text(row["id"]) for row in ends}
        return {
            "benchmark": "chaos",
            "store": self.options.store,
            "nodes": len(self.daemons),
            "seed": self.options.seed,
            "jobs": self.options.jobs,
            "accepted": len(ids),
            "kills": dict(self.kills),
            # An INSERT whose reply was lost with the store is sent again: more may be accepted.
            "lost": max(sent, len(ids)) - sum(1 for row in ends if row["ends"] >= 1),
            "recorded_twice": sum(1 for row in ends if row["ends"] > 1 or row["states"] > 1),
            "never_run": len(ids - set(runs)),
            "run_more_than_once": sum(1 for count in runs.values() if count > 1),
            "unsettled": unsettled,
            "longest_pause_s": round(self.pauses.longest, 3),
            "longest_pause_store_there_s": round(self.pauses.longest_with_store, 3),
            "recovery_ms": self.recoveries.figures(),
            "seconds": round(seconds, 1),
            "failures": self.recoveries.failures,
        }


def uuid_text(value: bytes) -> str:
    """The id as the handler writes it."""
    text = bytes(value).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2000, help="jobs to enqueue")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of victims and moments")
    parser.add_argument("--store", choices=("mariadb", "sqlite", "galera"), default="mariadb")
    parser.add_argument("--kinds", default=",".join(KINDS), help="what is killed")
    parser.add_argument("--rate", type=float, default=500.0, help="jobs enqueued a second")
    parser.add_argument("--kills", type=int, default=0, help="go on until so many kills")
    parser.add_argument("--store-every", type=float, default=15.0, help="seconds between kills of the store")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for the kills at the most")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and store")
    return parser.parse_args(words)


def main(
    words: list[str] | None = None,
    kind: type[Chaos] = Chaos,
    is_bad: Callable[[dict[str, Any]], bool] = lambda result: False,
) -> int:
    """Run and print; exit status 1 if a guarantee was broken."""
    options = arguments(words)
    folder = Path(tempfile.mkdtemp(prefix="workerd-chaos-"))
    chaos = kind(options, folder)
    try:
        result = chaos.run()
    finally:
        for daemon in chaos.daemons:
            daemon.end()
        chaos.target.remove()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))
    bad = result["lost"] or result["recorded_twice"] or result["never_run"] or result["unsettled"]
    return 1 if bad or result["failures"] or is_bad(result) else 0


if __name__ == "__main__":
    sys.exit(main())
