"""Chaos: under steady load, kill a random process of the tree again and again, and the store now and then.

    python benchmarks/chaos.py --jobs 100000 --seed 1 --store mariadb

What ran is counted by the handler itself, in a file outside of workerd; what was recorded is read from the
store with plain SQL. Prints one JSON line: lost, recorded twice, run more than once (allowed, counted),
longest pause, and the time to recover by kind of process. Exit status 1 if anything was lost or recorded
twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.galera import Galera
from tests.support.rows import Rows
from tests.support.servers import DURABLE, DatabaseServer

KINDS = ("supervisor", "dispatcher", "ingester", "pool", "worker")
CHUNKS = 20
"""Inserts a second: the load is steady, so that a pause is a pause."""

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


class Target:
    """The store under test; `kill` and `revive` one server of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.server: DatabaseServer | None = None
        self.galera: Galera | None = None
        if kind == "sqlite":
            self.urls = [f"sqlite:///{folder}/store.db"]
        elif kind == "mariadb":
            self.server = DatabaseServer(DURABLE).start()
            self.urls = [self.server.url(self.server.new_database())]
        else:
            self.galera = Galera(3).start()
            self.urls = self.galera.urls("chaos")

    def kill(self, chance: random.Random) -> str:
        """Kill a server of the store, if it is one; returns what was killed."""
        if self.server is not None:
            self.server.kill9()
            return "store"
        if self.galera is not None:
            self.galera.kill9(chance.randrange(1, 3))  # the first node stays, for plain SQL
            return "store"
        return ""

    def revive(self) -> None:
        """Start again what was killed."""
        if self.server is not None:
            self.server.start()
        if self.galera is not None:
            self.galera.revive()

    def remove(self) -> None:
        """Leave nothing behind."""
        if self.server is not None:
            self.server.remove()
        if self.galera is not None:
            self.galera.remove()


class Chaos:
    """One run: feeds, kills, watches, counts."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.chance = random.Random(options.seed)
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.touch()
        self.target = Target(options.store, folder)
        self.daemons = [
            Daemon(folder / f"n{number}", url, CONFIG, name=f"n{number}")
            for number, url in enumerate(self.target.urls, 1)
        ]
        self.rows = Rows(self.target.urls[0])
        self.kills: Counter[str] = Counter()
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self.longest_pause = 0.0
        self.done = threading.Event()
        self.fed = threading.Event()
        self.failure: list[str] = []

    # -- load

    def feed(self) -> None:
        """Enqueue all jobs with plain SQL, whatever happens to the store meanwhile."""
        left = self.options.jobs
        chunk = max(1, int(self.options.rate / CHUNKS))
        while left and not self.done.is_set():
            count = min(chunk, left)
            handler = "record2" if left % 3 == 0 else "record"
            try:
                self.rows.insert_many(handler, [{"path": str(self.runs)}] * count)
                left -= count
            except Exception:  # the store was killed: this whole statement took no effect, or is repeated
                self.done.wait(0.2)
                continue
            self.done.wait(count / self.options.rate)
        self.fed.set()

    # -- faults

    def victim(self, kind: str) -> psutil.Process | None:
        """A living process of that kind, if there is one just now."""
        daemon = self.chance.choice(self.daemons)
        wanted = {"pool": "workerd: pool ", "worker": "workerd: worker "}.get(kind, f"workerd: {kind}")
        found = []
        for process in daemon.tree():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(wanted):
                    found.append(process)
        return self.chance.choice(found) if found else None

    def strike(self) -> None:
        """Kill one process now, and see when the next job runs."""
        self.restart_dead()
        kind = self.chance.choice(KINDS)
        process = self.victim(kind)
        if process is None:
            return
        before = self.runs.stat().st_size
        began = time.monotonic()
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
            self.kills[kind] += 1
        if kind == "supervisor":
            self.restart_dead()
        self.until_something_runs(kind, before, began)

    def strike_store(self) -> None:
        """Kill the store, leave it dead for a while, and see how work goes on after it is back."""
        killed = self.target.kill(self.chance)
        if not killed:
            return
        self.kills[killed] += 1
        self.done.wait(self.chance.uniform(0.2, 2.0))
        self.target.revive()
        self.until_something_runs("store", self.runs.stat().st_size, time.monotonic())

    def until_something_runs(self, kind: str, before: int, began: float) -> None:
        """Wait until the file of runs has grown, at most 60 s, while there is something to do."""
        while self.runs.stat().st_size == before and not self.done.is_set():
            self.restart_dead()
            if self.fed.is_set() and not self.waiting():
                return  # everything has ended: nothing is left that could run
            if time.monotonic() - began > 60:
                self.failure.append(f"nothing ran for 60 s after {kind} was killed")
                return
            time.sleep(0.002)
        self.recoveries[kind].append(time.monotonic() - began)

    def restart_dead(self) -> None:
        """What a service manager does: start a daemon that ended."""
        for daemon in self.daemons:
            if daemon.process is not None and daemon.process.poll() is not None:
                daemon.spawn()

    def waiting(self) -> int:
        """Jobs without an end, or 1 while the store does not say."""
        try:
            counts = self.rows.counts()
        except Exception:
            return 1
        return sum(counts.get(status, 0) for status in ("new", "scheduled", "inprogress"))

    def watch_pauses(self) -> None:
        """The longest time in which no job began, while some were waiting."""
        size, since = 0, time.monotonic()
        while not self.fed.wait(0.005):
            now = self.runs.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            else:
                self.longest_pause = max(self.longest_pause, time.monotonic() - since)

    # -- the run

    def run(self) -> dict[str, Any]:
        """The whole run; returns the figures."""
        self.daemons[0].cli("migrate")
        for daemon in self.daemons:
            daemon.start()
        began = time.monotonic()
        feeder = threading.Thread(target=self.feed)
        watcher = threading.Thread(target=self.watch_pauses)
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
        self.done.set()
        watcher.join()
        with contextlib.suppress(AssertionError):
            eventually(self.all_ended, within=180, every=0.2)
        seconds = time.monotonic() - began
        unsettled = self.waiting()
        for daemon in self.daemons:
            daemon.end()
        return self.figures(seconds, unsettled)

    def all_ended(self) -> bool:
        self.restart_dead()
        return self.waiting() == 0

    def figures(self, seconds: float, unsettled: int) -> dict[str, Any]:
        """What the store and the file of runs say together."""
        runs = Counter(line.split()[0] for line in self.runs.read_text().splitlines())
        ends = self.rows.sql(
            "SELECT id, SUM(CASE WHEN status = 'completed' THEN 1 ELSE 0 END) AS ends,"
            " SUM(CASE WHEN status = 'retry' THEN 0 ELSE 1 END) AS states FROM workerd_jobs GROUP BY id"
        )
        ids = {uuid_text(row["id"]) for row in ends}
        return {
            "benchmark": "chaos",
            "store": self.options.store,
            "nodes": len(self.daemons),
            "seed": self.options.seed,
            "jobs": self.options.jobs,
            "accepted": len(ids),
            "kills": dict(self.kills),
            # An INSERT whose answer the killed store swallowed is sent again: more may be accepted.
            "lost": max(self.options.jobs, len(ids)) - sum(1 for row in ends if row["ends"] >= 1),
            "recorded_twice": sum(1 for row in ends if row["ends"] > 1 or row["states"] > 1),
            "never_run": len(ids - set(runs)),
            "run_more_than_once": sum(1 for count in runs.values() if count > 1),
            "unsettled": unsettled,
            "longest_pause_s": round(self.longest_pause, 3),
            "recovery_ms": {kind: spread(times) for kind, times in sorted(self.recoveries.items())},
            "seconds": round(seconds, 1),
            "failures": self.failure,
        }


def spread(times: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum in milliseconds."""
    ordered = sorted(times)
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered) * 1000, 1),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000, 1),
        "max": round(ordered[-1] * 1000, 1),
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
    parser.add_argument("--rate", type=float, default=500.0, help="jobs enqueued a second")
    parser.add_argument("--kills", type=int, default=0, help="go on until so many kills")
    parser.add_argument("--store-every", type=float, default=15.0, help="seconds between kills of the store")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for the kills at the most")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and store")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run, print, and say by the exit status whether every promise was kept."""
    options = arguments(words)
    folder = Path(tempfile.mkdtemp(prefix="workerd-chaos-"))
    chaos = Chaos(options, folder)
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
    return 1 if bad or result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
