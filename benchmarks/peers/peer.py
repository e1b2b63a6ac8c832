"""A peer's worker processes, and the file in which its jobs record their starts."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import psutil

from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.servers import free_port

PEERS = ("workerd", "celery", "rq", "dramatiq", "huey", "taskiq", "pebble")
WORKERS = 2


class Redis:
    """A private server."""

    def __init__(self, path: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("The peers need Redis: apt-get install redis-server, then run this again.")
        self.port = free_port()
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(path), "--save", ""]
        self._process = subprocess.Popen(
            [program, *options, "--appendonly", "yes", "--appendfsync", "everysec"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(self._answers, within=20)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def forget(self) -> None:
        """Take everything out, once nobody who was killed is still waiting there to be handed a job."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as link:

            def ask(words: bytes) -> bytes:
                link.sendall(words + b"\r\n")
                return link.recv(65536)

            eventually(lambda: b"blocked_clients:0" in ask(b"INFO clients"), within=20)
            assert ask(b"FLUSHALL").startswith(b"+OK")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Note(NamedTuple):
    """A line of a job: its number, the monotonic nanosecond, the process."""

    number: int
    at: int
    pid: int


class Notes:
    """What the jobs wrote, read on from where it was left."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._rest = b""
        self._notes: dict[str, list[Note]] = defaultdict(list)

    def of(self, job: str) -> list[Note]:
        """All lines of a job so far."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            name, *numbers = line.split()
            self._notes[name.decode()].append(Note(*map(int, numbers)))
        return self._notes[job]

    def forget(self) -> None:
        """All lines so far."""
        self.of("")
        self._notes.clear()


class Peer:
    """One of them: started, asked, killed."""

    def __init__(self, name: str, path: Path, redis: Redis) -> None:
        log = path / f"{name}.log"
        self.notes = Notes(log)
        self.errors = path / f"{name}.errors"
        self.errors.touch()
        os.environ |= {"PEER_REDIS": f"redis://127.0.0.1:{redis.port}/0", "PEER_LOG": str(log)}
        self.module: ModuleType = importlib.import_module(f"benchmarks.peers.with_{name}")
        self.name = name
        self.in_memory = getattr(self.module, "IN_MEMORY", False)
        self._redis = redis
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the workers; one that keeps its jobs in memory answers then."""
        os.environ["PEER_PORT"] = str(free_port())
        with self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                self.module.command(WORKERS), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
        if self.in_memory:
            eventually(self._answers, within=20)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.module.stored() == 0)
        self.module.forget()
        return False

    def restart(self) -> None:
        """Begin anew, with nothing left to do from before, and warm: each worker has run something."""
        self.clear()
        self.launch()
        for _ in range(10 * WORKERS):
            self.send("stamp", sent=0)
        assert self.wait(lambda: len(self.notes.of("stamp")) >= 10 * WORKERS, 60), f"{self.name} does not run"
        self.notes.forget()

    def clear(self) -> None:
        """End it; nothing of its jobs is left."""
        self.stop()
        self._redis.forget()
        getattr(self.module, "forget", bool)()
        self.notes.forget()

    def send(self, name: str, **vars: object) -> Any:
        """Enqueue one; what `became` takes."""
        return self.module.send(name, **vars)

    def send_many(self, name: str, many: list[dict[str, Any]]) -> None:
        """Enqueue them, in bulk if it can."""
        if hasattr(self.module, "send_many"):
            self.module.send_many(name, many)
            return
        for vars in many:
            self.module.send(name, **vars)

    def wait(self, fact: Callable[[], bool], within: float, every: float = 0.02) -> bool:
        """Whether it became true in time."""
        end = time.monotonic() + within
        while not fact():
            if time.monotonic() > end:
                return False
            time.sleep(every)
        return True

    def tail(self) -> str:
        """The last lines of its log."""
        return self.errors.read_text(errors="replace")[-1000:]

    def stop(self) -> None:
        """Kill whatever is left of it."""
        if self._process is None:
            return
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """It, and what it brought with it."""
        self.stop()
        getattr(self.module, "close", bool)()

    def tree(self) -> list[psutil.Process]:
        """Its processes."""
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        return []
