"""The demo: starts a daemon in a temporary folder, enqueues jobs, watches them end, and reports."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType

import msgspec

from workerd.config.build import load
from workerd.config.model import Config
from workerd.demo import report
from workerd.demo.handlers import CALLS, REJECTION, DemoTask, demo_tasks
from workerd.demo.report import DemoProgress, DemoResults
from workerd.document_types import Job
from workerd.errors import Conflict, WorkerdError
from workerd.job import Status, parse_id
from workerd.job_spec import JobSpec, check
from workerd.operations import jobs
from workerd.operations.access import Store, Tx, migrate, open_checked
from workerd.operations.actor import Actor
from workerd.operations.enqueue import admit
from workerd.operations.figures import depths
from workerd.operations.jobs import JobPage
from workerd.runtime.child import die_with_parent
from workerd.runtime.control import ask
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import poke

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
"""How long the daemon may take to stop before it is killed."""
DEMO_TIMEOUT_S = 600.0
POLL_INTERVAL_S = 0.1
BATCH_JOBS = 500
"""Jobs of one transaction."""
MAX_JOBS = 1_000_000
"""Jobs of one handler are counted up to here."""
MAX_LOG_CHARACTERS = 4000


class DemoFailed(WorkerdError):
    """The demo could not be run to its end; the message says why."""


def demo() -> None:
    """Run real jobs on a temporary daemon and show how they end."""
    try:
        _demo()
    except KeyboardInterrupt:
        print("The demo's daemon is stopped and its folder removed.", file=sys.stderr, flush=True)
        raise


def _demo() -> None:
    with _interruptible(), DemoNode() as node:
        tasks = demo_tasks(node.folder)
        total = sum(len(task.vars) for task in tasks)
        print(f"Starting workerd on an embedded store in {node.folder} …", file=sys.stderr, flush=True)
        config = node.configure(tasks)
        migrate(config)
        with closing(open_checked(config)) as store:
            store.run(lambda tx: tx.execute(REJECTION))
            node.start(config)
            started = time.monotonic()
            expected = enqueue(store, config, tasks)
            print(f"Enqueued {total:,} jobs of {len(tasks)} handlers.", file=sys.stderr, flush=True)
            _watch(node, config, store, tasks)
            elapsed_s = time.monotonic() - started
            status = node.stop()
            results = DemoResults(find_jobs(store), expected)
        report.print_report(tasks, results, elapsed_s)
        if status != 0:
            raise DemoFailed(f"The demo's daemon ended with exit status {status} instead of 0.")
        if not results.complete:
            raise DemoFailed("This is a bug in workerd: please report it with this output.")


def enqueue(store: Store, config: Config, tasks: Sequence[DemoTask]) -> set[str]:
    """Enqueue all jobs of all tasks; returns their ids."""
    # Unlike the client, which would reject the vars that do not fit: here the attempts are to fail.
    new = [check(JobSpec(handler=task.handler, vars=values)) for task in tasks for values in task.vars]
    ids: set[str] = set()
    for start in range(0, len(new), BATCH_JOBS):
        batch = new[start : start + BATCH_JOBS]
        insert = partial(admit, specs=batch, config=config, check_signatures=False)
        ids.update(job.id for job in store.run(insert))
        poke(Paths(config.node).wake)
    return ids


def _watch(node: DemoNode, config: Config, store: Store, tasks: Sequence[DemoTask]) -> None:
    """Show the progress until all jobs have ended. Raises DemoFailed when that takes too long."""
    deadline = time.monotonic() + DEMO_TIMEOUT_S
    events = _Events(node, config, store)
    with report.progress_display(tasks) as show:
        while True:
            progress = _progress(store, tasks)
            show(progress)
            if all(of.ended >= of.total for of in progress.values()):
                return
            events.act(progress)
            node.check()
            if time.monotonic() > deadline:
                raise DemoFailed(f"Not all jobs have ended within {DEMO_TIMEOUT_S:g} s.")
            time.sleep(POLL_INTERVAL_S)


class _Events:
    """What the demo does to running jobs: cancel them, kill their pool, shut the daemon down."""

    def __init__(self, node: DemoNode, config: Config, store: Store) -> None:
        self._node = node
        self._config = config
        self._store = store
        self._killed = False
        self._restarted = False

    def act(self, progress: Mapping[str, DemoProgress]) -> None:
        """Do what is due in this state. Raises DemoFailed if the daemon does not come up again."""
        if progress["waits"].running:
            _cancel_running(self._config, self._store, "waits")
        if progress["falls"].running and not self._killed:
            self._killed = self._node.kill_pool(self._config, "falls")
        others = [of for handler, of in progress.items() if handler != "outlasts"]
        ended = all(of.ended >= of.total for of in others)
        if ended and progress["outlasts"].running and not self._restarted:
            self._restarted = True
            self._node.stop()
            self._node.start(self._config)


def _progress(store: Store, tasks: Sequence[DemoTask]) -> dict[str, DemoProgress]:
    totals = {task.handler: len(task.vars) for task in tasks}
    found = store.read(lambda tx: depths(tx, list(totals), tuple(Status), MAX_JOBS))
    return {depth.handler: DemoProgress(totals[depth.handler], depth.counts) for depth in found}


def _cancel_running(config: Config, store: Store, handler: str) -> None:
    page = store.read(partial(jobs.list_, handler=handler, status=Status.INPROGRESS))
    for job in page.jobs:
        with suppress(Conflict):  # it has ended since
            store.run(partial(jobs.cancel, actor=Actor("cli:demo", "cli"), job_id=parse_id(job["id"])))
    poke(Paths(config.node).wake)


def find_jobs(store: Store) -> list[Job]:
    """All jobs of the store with their attempts and payloads."""
    found: list[Job] = []
    cursor: str | None = None
    while True:
        page = store.read(partial(jobs.list_, limit=BATCH_JOBS, after=cursor))
        found += store.read(partial(_jobs_of, page=page))
        cursor = page.next
        if cursor is None:
            return found


def _jobs_of(tx: Tx, page: JobPage) -> list[Job]:
    return [msgspec.convert(jobs.get(tx, parse_id(job["id"])), Job) for job in page.jobs]


class DemoNode:
    """A temporary folder with a configuration and an embedded store, and the daemon that runs on it.

    As a context it stops the daemon and removes the folder, whatever happened.
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
        # A second Ctrl-C must not interrupt the removal of the folder.
        with _signals_handled(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def configure(self, tasks: Sequence[DemoTask]) -> Config:
        """Write the configuration for these tasks; returns it as the daemon will read it."""
        self.path.write_text(configuration(self.folder, tasks))
        return load(self.path, {})

    def start(self, config: Config) -> None:
        """Start the daemon and wait until it is ready. Raises DemoFailed."""
        # Variables that configure the host's own daemon must not reach this one.
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("WORKERD_", "NOTIFY_"))}
        parent = os.getpid()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workerd", "run", "-c", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,  # Ctrl-C interrupts the demo, which then stops the daemon
                preexec_fn=lambda: die_with_parent(parent),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready(config):
            self.check()
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"The demo's daemon was not ready within {START_TIMEOUT_S:g} s.{self._end_of_log()}"
                )
            time.sleep(0.02)

    def _is_ready(self, config: Config) -> bool:
        try:
            return bool(ask(Paths(config.node).supervisor, {"ask": "status"}).get("ready"))
        except OSError:
            return False

    def kill_pool(self, config: Config, name: str) -> bool:
        """Kill a pool's process; false if it is not known."""
        try:
            pool = ask(Paths(config.node).supervisor, {"ask": "status"})["pools"].get(name) or {}
            os.kill(int(pool["pid"]), signal.SIGKILL)
        except (OSError, KeyError, TypeError):
            return False
        return True

    def check(self) -> None:
        """Raise DemoFailed if the daemon has died."""
        if self._process is not None and self._process.poll() is not None:
            raise DemoFailed(
                f"The demo's daemon ended with exit status {self._process.returncode}.{self._end_of_log()}"
            )

    def _end_of_log(self) -> str:
        with suppress(OSError):
            text = self._log.read_text(errors="replace")[-MAX_LOG_CHARACTERS:].strip()
            if text:
                return f" Its log ends with:\n{text}"
        return " It logged nothing; `workerd check` shows what is missing on this host."

    def stop(self) -> int | None:
        """Stop the daemon, by force if it takes too long; returns its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                process.send_signal(signum)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(STOP_TIMEOUT_S / 3)
        return process.wait()


def configuration(folder: Path, tasks: Sequence[DemoTask]) -> str:
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
        'drain = "1s"',
        "[pools.parse_source]",
        f"workers = {max(2, min(8, len(os.sched_getaffinity(0))))}",
    ]
    for task in tasks:
        call = CALLS.get(task.handler, task.handler)
        lines += [f"[handlers.{task.handler}]", f'call = "workerd.demo.handlers:{call}"']
        lines += [f"{key} = {value}" for key, value in task.table.items()]
    return "\n".join(lines) + "\n"


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does, with everything cleaned up."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _signals_handled(interrupt, signal.SIGTERM, signal.SIGHUP):
        yield


@contextmanager
def _signals_handled(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, *signums: signal.Signals
) -> Iterator[None]:
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)
