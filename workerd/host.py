"""What this host gives this process: its processors, and the limits of the control group it lives in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

_UNLIMITED_V1 = 1 << 60
"""Version 1 writes no limit as the largest multiple of a page."""


class HostLimits(msgspec.Struct, frozen=True):
    """Limits of this process's own control group and of those above it; None: none is set.

    processors
        How many processors' time this process may use at once, at least 1.
    memory_bytes, processes
        Shared by everything in the group.
    """

    processors: int
    memory_bytes: int | None
    processes: int | None


class _Group(NamedTuple):
    """A control group of one hierarchy, with the groups above it as far as they can be seen."""

    mount: Path
    path: str
    version: int

    def folders(self) -> Iterator[Path]:
        """This group first, the top last."""
        parts = [part for part in self.path.split("/") if part]
        for length in range(len(parts), -1, -1):
            yield self.mount.joinpath(*parts[:length])


def limits() -> HostLimits:
    """The limits as they are now; control groups of either version."""
    memory = _smallest("memory", {2: ("memory.max",), 1: ("memory.limit_in_bytes",)})
    processes = _smallest("pids", {2: ("pids.max",), 1: ("pids.max",)})
    return HostLimits(processors(), memory, processes)


def processors() -> int:
    """Processors that this process may use: its affinity, and the quota of its control group, rounded up."""
    usable = len(os.sched_getaffinity(0))
    quota = min(_cpu_quotas(), default=math.inf)
    return max(1, usable if quota >= usable else math.ceil(quota))


class OomKills:
    """Counts the processes of the present control group that the kernel has killed for memory."""

    def __init__(self) -> None:
        group = _find("memory")
        self._path: Path | None = None
        if group is not None:
            name = "memory.events" if group.version == 2 else "memory.oom_control"
            self._path = next(group.folders()) / name

    def count(self) -> int:
        """How many until now; 0 where the kernel does not count them."""
        words = [] if self._path is None else words_of(self._path)
        counts = dict(zip(words[::2], words[1::2], strict=False))
        value = counts.get("oom_kill", "")
        return int(value) if value.isdigit() else 0


def _cpu_quotas() -> Iterator[float]:
    for words in _read("cpu", {2: ("cpu.max",), 1: ("cpu.cfs_quota_us", "cpu.cfs_period_us")}):
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            yield int(words[0]) / int(words[1])


def _smallest(controller: str, files: dict[int, tuple[str, ...]]) -> int | None:
    numbers = [int(words[0]) for words in _read(controller, files) if words and words[0].isdigit()]
    return min((number for number in numbers if number < _UNLIMITED_V1), default=None)


def _read(controller: str, files: dict[int, tuple[str, ...]]) -> Iterator[list[str]]:
    """The words of these files, which depend on the version, in this process's group and those above it."""
    group = _find(controller)
    if group is not None:
        for folder in group.folders():
            yield [word for name in files[group.version] for word in words_of(folder / name)]


def _find(controller: str) -> _Group | None:
    """This process's group with that controller: of version 1 where it is mounted, else of version 2."""
    paths = dict(_own_paths())
    unified: _Group | None = None
    for root, mount, kind, options in _mounts():
        if kind == "cgroup" and controller in options and controller in paths:
            return _Group(mount, _below(root, paths[controller]), 1)
        if kind == "cgroup2" and "" in paths:
            unified = _Group(mount, _below(root, paths[""]), 2)
    return unified


def _below(root: str, path: str) -> str:
    """The path of a group below a mount that shows only what is below `root`, as in a container."""
    if root == "/" or "/.." in path:
        return "" if "/.." in path else path
    return path[len(root) :] if path.startswith(root) else ""


def _own_paths() -> Iterator[tuple[str, str]]:
    """(controller, path) of each hierarchy; the controller of version 2 is empty."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            yield controller, path


def _mounts() -> Iterator[tuple[str, Path, str, list[str]]]:
    """(root, mount point, type, options) of each mounted hierarchy."""
    for line in _lines(Path("/proc/self/mountinfo")):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if kind[0] in ("cgroup", "cgroup2"):
            yield fields[3], Path(fields[4].encode().decode("unicode_escape")), kind[0], kind[-1].split(",")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def words_of(path: Path) -> list[str]:
    """The words of a file of the kernel; none where it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []
