"""What every benchmark needs: private servers, a node of its own, and figures with their settings.

A benchmark yields `Figure`s: the question, the values of all repeats, the settings. `main` prints each as one
JSON line and one table row, and appends it to a file in `--results FOLDER`.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import eventually
from tests.support.rows import Rows
from tests.support.servers import DURABLE, DatabaseServer
from workerd import __version__
from workerd.client import Client
from workerd.job_spec import JobSpec

HANDLERS = "benchmarks.handlers"
SUBJECT = "Your order has been shipped and will arrive in a day or two."
STORES = ("mariadb", "sqlite")
ROOMY = ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=1G")
"""A realistic redo log: with the tests' 64 MiB the server flushes pages all the time."""


@dataclass
class Figure:
    """One result: `values` of all repeats in `unit`, or percentiles in `parts`."""

    benchmark: str
    case: str
    unit: str
    values: list[float] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    goal: str = ""
    better: str = "more"

    @property
    def median(self) -> float:
        """The median of the repeats."""
        return statistics.median(self.values) if self.values else self.parts.get("p50", 0.0)

    @property
    def met(self) -> bool | None:
        """Whether the goal, such as "p50 2 / p99 5" or "15,000", is met; None without one."""
        wanted = re.findall(r"(?:(p\d+|max) )?([\d,.]+)", self.goal)
        pairs = [
            (float(self.parts[part]) if part else self.median, float(number.replace(",", "")))
            for part, number in wanted
        ]
        return all(v <= g if self.better == "less" else v >= g for v, g in pairs) if pairs else None

    @property
    def verdict(self) -> str:
        """The goal, and whether it is met."""
        return f"{self.goal}: {'met' if self.met else 'MISSED'}" if self.goal else ""

    def record(self) -> dict[str, Any]:
        """The JSON line."""
        line: dict[str, Any] = {"benchmark": self.benchmark, "case": self.case, "unit": self.unit}
        if self.values:
            line |= {
                "median": rounded(self.median),
                "min": rounded(min(self.values)),
                "max": rounded(max(self.values)),
                "values": [rounded(value) for value in self.values],
            }
        line["parts"] = {name: rounded(value) for name, value in self.parts.items()}
        if self.goal:
            line |= {"goal": self.goal, "met": self.met}
        return line | {
            "better": self.better,
            "settings": self.settings,
            "versions": versions(),
            "machine": machine(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def row(self) -> str:
        """The row of a table."""
        if self.values:
            spread = f"{shown(min(self.values))} … {shown(max(self.values))}"
            figures = f"{shown(self.median):>10} {self.unit:8} ({spread}, n={len(self.values)})"
        else:
            figures = f"{told(self.parts)} {self.unit}"
        return f"| {self.benchmark:10} | {self.case:44} | {figures} | {self.verdict} |"


def told(parts: dict[str, Any]) -> str:
    """Percentiles, or counts of outcomes."""
    return "  ".join(f"{name} {v if isinstance(v, str) else shown(v)}" for name, v in parts.items())


def rounded(value: Any) -> Any:
    """Four significant digits; no machine repeats more."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if abs(value) < 1e4 else round(value)


def shown(value: float) -> str:
    """A number with separators."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and maximum."""
    ordered = sorted(values)
    if not ordered:
        return {"n": 0}

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    return {
        "p50": statistics.median(ordered), "p95": at(0.95), "p99": at(0.99),
        "max": ordered[-1], "n": len(ordered),
    }  # fmt: skip


# -- machine and versions ---------------------------------------------------------------------


@lru_cache
def machine() -> dict[str, Any]:
    """Processor, memory, kernel."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
    }


@lru_cache
def versions(*packages: str) -> dict[str, str]:
    """Program, interpreter, driver, server."""
    found = {"workerd": __version__, "python": platform.python_version()}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        found["commit"] = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    for package in ("PyMySQL", "msgspec", *packages):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    server = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if server:
        told = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout
        found["mariadb"] = next((w for w in told.split() if w[0].isdigit()), "")
    return found


# -- servers and nodes -------------------------------------------------------------------------


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder with a short path, as sockets need."""
    path = Path(tempfile.mkdtemp(prefix="wb."))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Server:
    """A store by kind: a private MariaDB with durable commits, or a file of SQLite (which is durable)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.database = DatabaseServer((*DURABLE, *ROOMY)).start() if kind == "mariadb" else None
        self.path = Path(tempfile.mkdtemp(prefix="wb."))
        self._stores = 0

    def url(self) -> str:
        """A fresh store in it."""
        self._stores += 1
        if self.database is None:
            return f"sqlite:///{self.path}/{self._stores}.db"
        return self.database.url(self.database.new_database())

    @property
    def settings(self) -> dict[str, Any]:
        """Its durability."""
        if self.database is None:
            return {"store": "sqlite", "journal": "WAL", "synchronous": "FULL"}
        return {"store": "mariadb", "flush_log_at_trx_commit": 1, "doublewrite": True, "room": list(ROOMY)}

    def cpu(self) -> float:
        """CPU seconds used by the server; 0 for an embedded store."""
        if self.database is None:
            return 0.0
        times = psutil.Process(self.database.pid).cpu_times()
        return float(times.user + times.system)

    def rest(self) -> None:
        """Wait until the server has flushed the rows that were inserted to fill the store."""
        if self.database is None:
            return
        server, sql = self.database, "SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'"
        server.sql("SET GLOBAL innodb_max_dirty_pages_pct = 0")
        with contextlib.suppress(AssertionError):  # it is never quite idle
            eventually(lambda: int(server.sql(sql)[0][1]) < 200, within=60, every=0.2)
        server.sql("SET GLOBAL innodb_max_dirty_pages_pct = 90")

    def queries(self) -> int:
        """Statements received by the server."""
        assert self.database is not None
        return int(self.database.sql("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.database is not None:
            self.database.remove()
        shutil.rmtree(self.path, ignore_errors=True)


class Node:
    """A daemon on a store, with a client on the same machine and access to its rows."""

    def __init__(
        self, url: str, config: str, *, path: Path | None = None, gateway: str = "", migrate: bool = True
    ) -> None:
        self._own = path is None
        self.path = path or Path(tempfile.mkdtemp(prefix="wb."))
        self.url = url
        self.daemon = Daemon(self.path / "n", url, config, name=self.path.name, gateway=gateway)
        self.rows = Rows(url)
        if migrate:
            self.daemon.cli("migrate")
        self.client = Client(self.daemon.path)

    def __enter__(self) -> Node:
        self.daemon.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.daemon.end()
        if self._own:
            shutil.rmtree(self.path, ignore_errors=True)

    # -- jobs

    def enqueue(self, handler: str, count: int, vars_of: Callable[[int], dict[str, Any]]) -> None:
        """So many jobs, in bulk."""
        for start in range(0, count, 2000):
            numbers = range(start, min(count, start + 2000))
            self.client.enqueue_many([JobSpec(handler=handler, vars=vars_of(n)) for n in numbers])

    def wait_for(self, handler: str, within: float = 600.0, every: float = 0.05) -> None:
        """Wait until no job of the handler is waiting or running, without loading the store."""
        sql = "SELECT 1 FROM workerd_jobs WHERE handler = %s AND status = %s LIMIT 1"

        def over() -> bool:
            return not any(self.rows.sql(sql, handler, state) for state in ("inprogress", "new", "scheduled"))

        eventually(over, within=within, every=every, state=self.daemon.tail)

    def forget(self) -> None:
        """Delete all jobs."""
        self.rows.sql("DELETE FROM workerd_jobs" if self.rows.sqlite else "TRUNCATE workerd_jobs")

    # -- processes

    def cpu(self) -> dict[str, float]:
        """CPU seconds by process title."""
        used: dict[str, float] = {}
        for process in self.daemon.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                title = title_of(process)
                used[title] = used.get(title, 0.0) + times.user + times.system
        return used

    def pss(self) -> dict[str, float]:
        """MiB of proportional memory by process title."""
        used: dict[str, float] = {}
        for process in self.daemon.tree():
            with contextlib.suppress(psutil.Error):
                title = title_of(process)
                used[title] = used.get(title, 0.0) + process.memory_full_info().pss / 2**20
        return used


def title_of(process: psutil.Process) -> str:
    """`workerd: worker noop/0 ID` as `worker`."""
    words = " ".join(process.cmdline()).removeprefix("workerd: ").split()
    return words[0] if words else "?"


def moment(value: Any) -> Any:
    """A time column of either engine."""
    from datetime import datetime

    return datetime.fromisoformat(value) if isinstance(value, str) else value


def mail(n: int) -> dict[str, Any]:
    """The arguments of the standard job, the same for all peers."""
    return {"n": n, "email": f"user{n}@example.org", "subject": SUBJECT}


def config(handlers: dict[str, str], *, more: str = "") -> str:
    """Configuration text: handler -> its table's lines."""
    tables = "".join(f"[handlers.{name}]\n{lines}\n" for name, lines in handlers.items())
    return f'{more}\n[defaults]\npath = ["{ROOT}"]\n{tables}'


# -- the command line --------------------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options common to all benchmarks."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="fewer cases and repeats, as `make bench` does")
    made.add_argument("--repeats", type=int, default=0, help="of each case (default: 3, quick: fewer)")
    made.add_argument("--results", type=Path, default=None, metavar="FOLDER", help="append JSON lines there")
    return made


def main(
    arguments: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Iterable[Figure]],
    words: Sequence[str] | None = None,
) -> int:
    """Run a benchmark: print and keep each figure as it comes."""
    options = arguments.parse_args(words)
    machine()
    # As an installer does it: a daemon that compiles its modules itself keeps 3 MiB more, and one that
    # compiles those of its libraries 5 MiB; copied ones count as changed.
    for sources in (ROOT / "workerd", sysconfig.get_path("purelib")):
        compileall.compile_dir(sources, quiet=2)
    try:
        for figure in measure(options):
            keep(figure, options.results)
    except KeyboardInterrupt:  # everything it started has been stopped
        print("Stopped before its end.", flush=True)
        return 130
    return 0


def keep(figure: Figure, results: Path | None) -> None:
    """Print it, and append its line to the benchmark's file."""
    record = json.dumps(figure.record())
    print(figure.row())
    print(record, flush=True)
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        with (results / f"{figure.benchmark}.jsonl").open("a") as file:
            file.write(record + "\n")
