"""The daemon as a subprocess with its own configuration and folders; kills single roles, cleans up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil

from tests.support.eventually import eventually
from workerd.runtime.control import ask

ROOT = Path(__file__).parents[2]
HANDLERS = "tests.support.handlers"


class Daemon:
    """`workerd run` on a configuration of the test.

    `config`: TOML text, prefixed with node folders, the store and, unless it has one, a gateway table.
    `gateway`: listen address, "" for none. `entry`: module to run and its first arguments. `env`: additional
    environment variables. `prefix`: the beginning of a command that executes the rest of it.
    `generation`: of the daemon; several may share a folder.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        config: str,
        *,
        name: str = "",
        gateway: str = "",
        entry: tuple[str, ...] = ("workerd",),
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        generation: int = 1,
    ) -> None:
        self.generation = generation
        self.prefix = prefix
        self.folder = folder
        self.url = url
        self.process: subprocess.Popen[bytes] | None = None
        self.name = name or folder.name
        self.gateway = gateway
        self.entry = entry
        self.env = env or {}
        if generation > 1:
            self.env = self.env | {"WORKERD_NODE__GENERATION": str(generation)}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "workerd.toml"
        self.write(config)

    def write(self, config: str) -> None:
        """Write the configuration file."""
        head = (
            f'[node]\nname = "{self.name}"\n'
            f'runtime_dir = "{self.folder}/run"\nstate_dir = "{self.folder}/state"\n'
            f'[store]\nurl = "{self.url}"\n'
        )
        if "[gateway]" not in config:
            head += f'[gateway]\nlisten = "{self.gateway}"\n'
        self.path.write_text(head + config)

    # -- start and stop

    def spawn(self) -> Daemon:
        """Start it without waiting."""
        log = (self.folder / "log").open("ab")
        env = {k: v for k, v in os.environ.items() if not k.startswith("WORKERD_")}
        env.update(self.env, PYTHONPATH=str(ROOT))
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", *self.entry, "run", "-c", str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd="/",
        )
        log.close()
        return self

    def start(self, within: float = 30.0) -> Daemon:
        """Start it and wait until it reports ready."""
        self.spawn()
        eventually(self.ready, within=within, state=self.tail)
        return self

    def ready(self) -> bool:
        """Whether every role is up and every pool up or quarantined."""
        assert self.process is not None
        assert self.process.poll() is None, (
            f"the daemon exited with status {self.process.returncode}: {self.tail()}"
        )
        return bool(self.status().get("ready"))

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop it from any state; no process is left."""
        if self.process is None:
            return
        tree = self.tree()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        _kill_all(tree)
        self.process.wait()
        self.process = None

    def stop(self, within: float = 40.0) -> int:
        """Send SIGTERM and return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    # -- commands, status and log

    def cli(
        self, *arguments: str, check: bool = True, within: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of workerd on this configuration; unless `check` is false it must exit with 0."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("WORKERD_")}
        env.update(self.env, PYTHONPATH=str(ROOT))
        done = subprocess.run(
            [sys.executable, "-m", "workerd", *arguments, "-c", str(self.path)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=env,
            timeout=within,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        """Return the supervisor's status; {} while it does not answer."""
        try:
            own = "" if self.generation == 1 else f"generations/{self.generation}"
            return ask(self.folder / "run" / own / "private" / "supervisor", {"ask": "status"})
        except OSError:
            return {}

    def runs(self, job: bytes) -> bool:
        """Whether a worker is running this job; a claimed job may not have reached one yet."""
        pools = self.status().get("pools", {}).values()
        busy = {worker.get("job") for pool in pools for worker in pool.get("workers", ())}
        return str(uuid.UUID(bytes=job)) in busy

    def pid(self, name: str) -> int:
        """Return the pid of a role, of `pool:NAME` or of the supervisor; 0 while it is down."""
        assert self.process is not None
        if name == "supervisor":
            return self.process.pid
        status = self.status()
        child = status["pools"][name[5:]] if name.startswith("pool:") else status["roles"][name]
        return int(child["pid"] or 0)

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Signal a role or pool; return its pid."""
        pid = self.pid(name)
        assert pid, f"{name} is not running"  # 0 would be our own process group
        os.kill(pid, signum)
        return pid

    def kill_tree(self) -> None:
        """SIGKILL the daemon and all its descendants."""
        _kill_all(self.tree())

    def tree(self) -> list[psutil.Process]:
        """Return the daemon's process and all its descendants."""
        assert self.process is not None
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def logged(self) -> str:
        """Return everything it logged."""
        return (self.folder / "log").read_text(errors="replace")

    def tail(self) -> str:
        """Return the end of the log and the status, for a failed assertion."""
        return self.logged()[-4000:] + json.dumps(self.status(), default=str)[:4000]


def _kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # children die with their supervisor
            process.kill()
