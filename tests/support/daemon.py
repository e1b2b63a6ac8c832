"""The real daemon as a subprocess, on a configuration and folders of its own; killed by role, ended clean."""

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
    """`workerd run` with what a test needs around it.

    `config` is TOML text; node folders, store and a closed gateway are put in front of it unless given.
    `entry`: the module that is run, and its first words. `env`: variables of its own.
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
    ) -> None:
        self.folder = folder
        self.url = url
        self.process: subprocess.Popen[bytes] | None = None
        self.name = name or folder.name
        self.gateway = gateway
        self.entry = entry
        self.env = env or {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "workerd.toml"
        self.write(config)

    def write(self, config: str) -> None:
        """Write the configuration file anew."""
        head = (
            f'[node]\nname = "{self.name}"\n'
            f'runtime_dir = "{self.folder}/run"\nstate_dir = "{self.folder}/state"\n'
            f'[store]\nurl = "{self.url}"\n'
        )
        if "[gateway]" not in config:
            head += f'[gateway]\nlisten = "{self.gateway}"\n'
        self.path.write_text(head + config)

    # -- life

    def spawn(self) -> Daemon:
        """Start it without waiting."""
        log = (self.folder / "log").open("ab")
        env = {k: v for k, v in os.environ.items() if not k.startswith("WORKERD_")}
        env.update(self.env, PYTHONPATH=str(ROOT))
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.entry, "run", "-c", str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd="/",
        )
        log.close()
        return self

    def start(self, within: float = 30.0) -> Daemon:
        """Start it and wait until it says that it is ready."""
        self.spawn()
        eventually(self.ready, within=within, state=self.tail)
        return self

    def ready(self) -> bool:
        """Whether every role is up and every pool up or quarantined."""
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}: {self.tail()}"
        return bool(self.status().get("ready"))

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """Whatever state it is in: leave no process behind."""
        if self.process is None:
            return
        tree = self.tree()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.process = None

    def stop(self, within: float = 40.0) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    # -- looking

    def cli(self, *words: str, check: bool = True, within: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command of workerd on this configuration."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("WORKERD_")}
        env.update(self.env, PYTHONPATH=str(ROOT))
        done = subprocess.run(
            [sys.executable, "-m", "workerd", *words, "-c", str(self.path)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=env,
            timeout=within,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        """What the supervisor says; {} while it does not answer."""
        try:
            return ask(self.folder / "run" / "private" / "supervisor", {"ask": "status"})
        except OSError:
            return {}

    def runs(self, job: bytes) -> bool:
        """Whether a worker has begun this job: a claim alone may still be on its way."""
        pools = self.status().get("pools", {}).values()
        busy = {worker.get("job") for pool in pools for worker in pool.get("workers", ())}
        return str(uuid.UUID(bytes=job)) in busy

    def pid(self, name: str) -> int:
        """The pid of a role, of `pool:NAME`, or of the supervisor."""
        assert self.process is not None
        if name == "supervisor":
            return self.process.pid
        status = self.status()
        slot = status["pools"][name[5:]] if name.startswith("pool:") else status["roles"][name]
        return int(slot["pid"] or 0)

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Signal a role or pool; returns its pid."""
        pid = self.pid(name)
        os.kill(pid, signum)
        return pid

    def tree(self) -> list[psutil.Process]:
        """The daemon and all its descendants."""
        assert self.process is not None
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def logged(self) -> str:
        """Everything that it wrote to standard error."""
        return (self.folder / "log").read_text(errors="replace")

    def tail(self) -> str:
        """The end of the log and the status, for a failed assertion."""
        return self.logged()[-4000:] + json.dumps(self.status(), default=str)[:4000]
