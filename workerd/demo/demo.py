"""`workerd demo`: a real daemon on an embedded store, in a temporary folder, from start to verdict."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType

import msgspec
from rich.console import Console

from workerd.config.build import load
from workerd.config.model import Config
from workerd.demo import report
from workerd.demo.handlers import CALLS, Task, tasks
from workerd.demo.report import DemoProgress, progress, results, running
from workerd.errors import Conflict, WorkerdError
from workerd.job import new_id
from workerd.job_spec import NewJob
from workerd.runtime.child import die_with_parent
from workerd.runtime.control import ask
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import poke
from workerd.store import job_control, jobs
from workerd.store.base import Store
from workerd.store.engines import open_store

START_LIMIT = 60.0
STOP_LIMIT = 10.0
"""Seconds that the daemon may take to stop by itself."""
LOG_SHOWN = 4000


class DemoFailed(WorkerdError):
    """The demo could not be shown; the message says why."""


class DemoNode:
    """A temporary folder with a configuration and an embedded store, and the daemon on it.

    Leaving it stops the daemon and removes the folder, however it is left.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="workerd-demo-"))
        self.path = self.folder / "workerd.toml"
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DemoNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C while the folder is being removed must not leave half of it.
        with _deaf():
            self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def configure(self, tasks: Sequence[Task]) -> Config:
        """Write the configuration for these tasks; returns it as the daemon will read it."""
        self.path.write_text(configuration(self.folder, tasks))
        return load(self.path, {})

    def start(self, config: Config) -> None:
        """Start the daemon and wait until it is ready. Raises DemoFailed."""
        # What configures the machine's own daemon must not reach this one.
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("WORKERD_", "NOTIFY_"))}
        parent = os.getpid()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workerd", "run", "-c", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                # Ctrl-C is for the demo, which then stops the daemon.
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )
        end = time.monotonic() + START_LIMIT
        while not self._ready(config):
            self.check()
            if time.monotonic() > end:
                raise DemoFailed(
                    f"The demo's daemon was not ready within {START_LIMIT:g} s.{self._last_words()}"
                )
            time.sleep(0.02)

    def _ready(self, config: Config) -> bool:
        try:
            return bool(ask(Paths(config.node).supervisor, {"ask": "status"}).get("ready"))
        except OSError:
            return False

    def check(self) -> None:
        """Raise DemoFailed if the daemon has died."""
        if self._process is not None and self._process.poll() is not None:
            raise DemoFailed(
                f"The demo's daemon ended with exit status {self._process.returncode}.{self._last_words()}"
            )

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            said = self._log.read_text(errors="replace")[-LOG_SHOWN:].strip()
            if said:
                return f" Its log ends with:\n{said}"
        return " It logged nothing; `workerd check` tells what is missing on this machine."

    def stop(self) -> int | None:
        """Stop the daemon, by force if it takes too long; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(STOP_LIMIT / 3)
        return process.wait()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def configuration(folder: Path, tasks: Sequence[Task]) -> str:
    """The demo's configuration as TOML."""
    lines = [
        "[node]",
        'name = "demo"',
        f'runtime_dir = "{folder}/run"',
        f'state_dir = "{folder}/state"',
        "[log]",
        'format = "text"',
        "[store]",
        f'url = "sqlite:///{folder}/workerd.db"',
        "[gateway]",
        'listen = ""',
        "[shutdown]",
        'drain = "2s"',
        "[pools.parse_source]",
        f"workers = {max(2, min(8, len(os.sched_getaffinity(0))))}",
    ]
    for task in tasks:
        call = CALLS.get(task.handler, task.handler)
        lines += [f"[handlers.{task.handler}]", f'call = "workerd.demo.handlers:{call}"']
        lines += [f"{key} = {value}" for key, value in task.table.items()]
    return "\n".join(lines) + "\n"


LIMIT = 600.0
"""Seconds after which the demo gives up."""
LOOK_EVERY = 0.1
BULK = 500
"""Jobs of one transaction."""


def demo() -> None:
    """Run real jobs on a temporary daemon and show how they end."""
    console = Console(stderr=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=150, highlight=False, emoji=False, color_system=None)
    with _interruptible(), DemoNode() as node:
        work = tasks(node.folder)
        config = node.configure(work)
        store = open_store(config.store)
        try:
            _shown(console, node, config, store, work)
        finally:
            store.close()


def _shown(console: Console, node: DemoNode, config: Config, store: Store, work: Sequence[Task]) -> None:
    total = sum(len(task.vars) for task in work)
    print(f"Starting workerd on an embedded store in {node.folder} …", file=sys.stderr, flush=True)
    store.migrate()
    node.start(config)
    began = time.monotonic()
    expected = enqueue(store, work)
    poke(Paths(config.node).wake)
    print(f"{total:,} jobs of {len(work)} handlers were enqueued; they run now.", file=sys.stderr, flush=True)
    _watch(console, node, config, store, work)
    elapsed = time.monotonic() - began
    found = results(store, expected)
    report.table(console, work, found)
    console.print()
    report.summary(console, found, elapsed)
    status = node.stop()
    found = results(store, expected)
    report.verdict(console, found, total)
    if status != 0:
        raise DemoFailed(f"The demo's daemon ended with exit status {status} instead of 0.")
    if not found.complete:
        raise DemoFailed("This is a bug in workerd: please report it with this output.")


def enqueue(store: Store, work: Sequence[Task]) -> set[bytes]:
    """Enqueue every task's jobs in bulk; their ids."""
    new = [
        NewJob(handler=task.handler, id=new_id(), vars=msgspec.json.encode(values))
        for task in work
        for values in task.vars
    ]
    ids: set[bytes] = set()
    for start in range(0, len(new), BULK):
        insert = partial(jobs.insert, jobs=new[start : start + BULK])
        ids.update(done.id for done in store.run(insert))
    return ids


def _watch(console: Console, node: DemoNode, config: Config, store: Store, work: Sequence[Task]) -> None:
    """Show progress until all have ended. Raises DemoFailed when that takes too long."""
    totals = {task.handler: len(task.vars) for task in work}
    end = time.monotonic() + LIMIT
    shown = report.show_for(console, work)
    try:
        while True:
            now = progress(store, totals)
            shown.update(now)
            if all(of.ended >= of.total for of in now.values()):
                return
            _cancel_one_that_waits(config, store, now)
            node.check()
            if time.monotonic() > end:
                raise DemoFailed(f"Not all jobs have ended within {LIMIT:g} s.")
            time.sleep(LOOK_EVERY)
    finally:
        shown.close()


def _cancel_one_that_waits(config: Config, store: Store, now: dict[str, DemoProgress]) -> None:
    if now["waits"].running:
        for job_id in running(store, "waits"):
            with suppress(Conflict):  # it has ended since we looked
                store.run(partial(job_control.cancel, job_id=job_id))
        poke(Paths(config.node).wake)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: with everything cleaned up."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
