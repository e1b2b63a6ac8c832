"""The demo's daemon: a real one, as a subprocess, in a temporary folder that goes with it."""

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
from pathlib import Path
from types import TracebackType

from workerd.config import load
from workerd.config.model import Config
from workerd.demo.material import CALLS, Task
from workerd.errors import WorkerdError
from workerd.process.child import die_with_parent
from workerd.process.context import Paths
from workerd.process.control import ask

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
