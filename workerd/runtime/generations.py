"""The daemons of one host that replace each other: a new generation serves before the former has ended.

They share node.runtime_dir and node.state_dir, each with a folder of its own below (see `Paths`). They
communicate by files: these survive the death of either, and are read again after a restart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from workerd.config.model import NodeConfig
from workerd.runtime.control import ask
from workerd.runtime.own_files import open_own
from workerd.runtime.paths import GENERATIONS, Paths

LIVE = "live"
"""In node.runtime_dir: a link to the folder of the generation that serves; the first one if there is none."""
_TARGET = re.compile(rf"{GENERATIONS}/([1-9][0-9]{{0,2}})")


class Generations:
    """What this generation of the daemon sees of the others."""

    def __init__(self, node: NodeConfig) -> None:
        self._node = node
        self._base = Path(node.runtime_dir)
        self._own = Paths(node)

    def paths(self, generation: int) -> Paths:
        """The files of one generation."""
        return Paths(msgspec.structs.replace(self._node, generation=generation))

    @property
    def serving(self) -> int:
        """The generation that serves, or did last."""
        try:
            match = _TARGET.fullmatch(os.readlink(self._base / LIVE))
        except OSError:
            return 1
        return int(match[1]) if match is not None else 1

    def others(self) -> list[int]:
        """The generations beside this one that have ever been here, dead or alive."""
        try:
            names = os.listdir(Path(self._node.state_dir) / GENERATIONS)
        except OSError:
            names = []
        known = {1, *(int(name) for name in names if name.isascii() and name.isdigit())}
        return sorted(known - {self._node.generation})

    def alive(self) -> list[int]:
        """Those of them that run."""
        return [number for number in self.others() if self._lives(number)]

    def _lives(self, generation: int) -> bool:
        with self.locked(generation) as free:
            return not free and self.paths(generation).lock.exists()

    @contextlib.contextmanager
    def locked(self, generation: int) -> Iterator[bool]:
        """Keep a generation that does not run from starting; False if it runs, or has no files."""
        try:
            fd = open_own(self.paths(generation).lock, os.O_RDWR)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(fd)

    # -- of the daemon itself

    @property
    def superseded(self) -> bool:
        """Whether another generation has taken over from this one."""
        return self._own.superseded.exists()

    def begin(self) -> bool:
        """At the start: whether this one was superseded, and the one that serves runs."""
        if self.superseded and self.serving in self.alive():
            return True
        self._own.superseded.unlink(missing_ok=True)
        return False

    def take_over(self) -> list[int]:
        """Serve, and let the generations that run end; returns these. Raises OSError."""
        with self._deciding():
            former = self.alive()
            for number in former:
                self.paths(number).superseded.touch(0o600)
            self._own.superseded.unlink(missing_ok=True)
            self._lead_here()
        return former

    @contextlib.contextmanager
    def _deciding(self) -> Iterator[None]:
        """Of two that take over at once, the later one supersedes the other."""
        fd = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def keep_leading_here(self) -> None:
        """See that commands and clients still find this daemon, which serves. Raises OSError."""
        if self.superseded or self.serving != self._node.generation:
            return
        if self._lives(1) and not self.paths(1).superseded.exists():
            return  # it is starting, and about to take over: what leads here stays away from its sockets
        self._lead_here()

    def _lead_here(self) -> None:
        live, wake = self._base / LIVE, self._base / self._own.wake.name
        if self._node.generation == 1:
            live.unlink(missing_ok=True)
            return
        own = f"{GENERATIONS}/{self._node.generation}"
        _link(live, own)
        _link(wake, f"{own}/{wake.name}")

    def leave(self) -> None:
        """At the end of this daemon: nothing leads here any more."""
        self._own.superseded.unlink(missing_ok=True)
        if self._node.generation > 1 and self.serving == self._node.generation:
            for name in (LIVE, self._own.wake.name):
                path = self._base / name
                if path.is_symlink():
                    path.unlink(missing_ok=True)


def _link(path: Path, target: str) -> None:
    """Make `path` a link to `target`, whatever it was; other processes see one or the other."""
    with contextlib.suppress(OSError):
        if os.readlink(path) == target:
            return
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(path)


# -- for those who ask


def serving_paths(node: NodeConfig) -> Paths:
    """The files of the daemon that serves this configuration."""
    generations = Generations(node)
    return generations.paths(generations.serving)


def ask_status(node: NodeConfig, timeout: float = 5.0) -> dict[str, Any]:
    """The status of the daemon that serves, with the pools of the generations that end beside it.

    Those are called `POOL@N`; `former` says of each such daemon `generation`, `node`, `pid`, `version` and
    `state`. Raises OSError if the daemon that serves does not answer.
    """
    generations, question = Generations(node), {"ask": "status"}
    document = ask(generations.paths(generations.serving).supervisor, question, timeout)
    document["former"] = former = []
    for number, answer in ask_all(node, question, timeout):
        if number == document.get("generation"):
            continue
        former.append(
            {"generation": number} | {key: answer.get(key) for key in ("node", "pid", "version", "state")}
        )
        for name, pool in (answer.get("pools") or {}).items():
            if pool.get("pid"):
                document.setdefault("pools", {})[f"{name}@{number}"] = pool
    return document


def ask_all(
    node: NodeConfig, question: dict[str, Any], timeout: float = 5.0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The answers of all generations that run, each with its number, first that of the one that serves."""
    generations = Generations(node)
    serving = generations.serving
    for number in sorted(
        {node.generation, *generations.others()}, key=lambda number: (number != serving, number)
    ):
        socket = generations.paths(number).supervisor
        if socket.exists():
            with contextlib.suppress(OSError):
                yield number, ask(socket, question, timeout)
