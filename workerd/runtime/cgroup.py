"""Control groups, version 2, in a subtree that the service manager delegated.

    unit's group      Delegate=yes in the unit: everything below belongs to workerd
    ├── roles         supervisor and roles: a group with controllers for its children may hold no process
    └── pool.NAME     cpu.weight, pids.max
        ├── manager   the pool's own process
        └── worker.N  memory.max; killed as a whole at a deadline

All of it is best effort: what a kernel or container does not offer is left out, and the rest still works.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
from pathlib import Path

from workerd.host import words_of

ROLES = "roles"
MANAGER = "manager"
CONTROLLERS = ("memory", "cpu", "pids")

_DEFAULT_WEIGHT = 100
_MAX_PREPARE_TRIES = 20


class Delegation:
    """A subtree of control groups that this process may change."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def find(cls) -> Delegation | None:
        """The subtree that this process was started in, or None if it is not delegated; changes nothing.

        Delegated is what the service manager marked so, or the top of a cgroup namespace, if this user may
        write it.
        """
        mounted = _mount()
        path = _own_path()
        if mounted is None or path is None:
            return None
        parts = [part for part in path.split("/") if part]
        if parts[-1:] == [ROLES]:
            parts = parts[:-1]
        elif parts[-1:] == [MANAGER] and parts[-2:-1] and parts[-2].startswith("pool."):
            parts = parts[:-2]
        root = mounted.joinpath(*parts)
        return cls(root) if _is_ours(root, top=not parts) else None

    @property
    def controllers(self) -> frozenset[str]:
        """Those of memory, cpu and pids that child groups can have."""
        return frozenset(words_of(self.root / "cgroup.controllers")) & frozenset(CONTROLLERS)

    def prepare(self) -> bool:
        """Move every process here to `roles`, then enable the controllers for child groups.

        May be called again at any time. False if the kernel refused: groups then have no limits.
        """
        roles = self.root / ROLES
        try:
            roles.mkdir(exist_ok=True)
        except OSError:
            return False
        # A process forked meanwhile is still here, and keeps the controllers from being enabled.
        for _ in range(_MAX_PREPARE_TRIES):
            for pid in words_of(self.root / "cgroup.procs"):
                _write(roles / "cgroup.procs", pid)
            if _enable_controllers(self.root, self.controllers):
                return True
        return False

    def pool_group(self, name: str, cpu_weight: int = 0, pids_max: int = 0) -> PoolGroup:
        """Make the pool's group and move this process into it. 0: the default weight, no limit.

        Worker groups left behind by an earlier process of the pool are killed and removed. Raises OSError.
        """
        wanted = {"memory"} & self.controllers
        if not set(words_of(self.root / "cgroup.subtree_control")) >= self.controllers:
            self.prepare()
        group = PoolGroup(self.root / f"pool.{_file_name(name)}")
        group.path.mkdir(exist_ok=True)
        group.sweep()
        (group.path / MANAGER).mkdir(exist_ok=True)
        _must_write(group.path / MANAGER / "cgroup.procs", "0")
        _enable_controllers(group.path, wanted)
        group.set_limits(cpu_weight, pids_max)
        return group

    def kill_pool(self, name: str) -> bool:
        """Kill and remove what a former pool left behind; False while processes are still dying there."""
        group = PoolGroup(self.root / f"pool.{_file_name(name)}")
        group.kill()
        return group.remove()


class PoolGroup:
    """The control group of a pool."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, controller: str) -> bool:
        """Whether worker groups can have this controller."""
        return controller in words_of(self.path / "cgroup.subtree_control")

    def set_limits(self, cpu_weight: int, pids_max: int) -> None:
        """Set the pool's limits as far as the kernel has them."""
        _write(self.path / "cpu.weight", str(cpu_weight or _DEFAULT_WEIGHT))
        _write(self.path / "pids.max", str(pids_max or "max"))

    def worker_group(self, number: int, memory_max: int = 0) -> WorkerGroup:
        """A fresh group for one worker; `memory_max` bytes, 0 for no limit. Raises OSError."""
        group = WorkerGroup(self.path / f"worker.{number}", memory_max)
        group.path.mkdir(exist_ok=True)
        _write(group.path / "memory.max", str(memory_max or "max"))
        if memory_max:
            # With swap, a job over its limit would become slow; without group kill, it would lose processes.
            _write(group.path / "memory.swap.max", "0")
            _write(group.path / "memory.oom.group", "1")
        return group

    def sweep(self) -> None:
        """Kill and remove all worker groups."""
        with contextlib.suppress(OSError):
            for path in self.path.glob("worker.*"):
                group = WorkerGroup(path, 0)
                group.kill()
                group.remove()

    def kill(self) -> None:
        """Kill every process in it, also the pool's own."""
        _kill(self.path)

    def remove(self) -> bool:
        """Remove it and its child groups; False while processes are still dying in it."""
        return _remove(self.path)


class WorkerGroup:
    """The control group of one worker and of everything that its jobs start."""

    def __init__(self, path: Path, memory_max: int) -> None:
        self.path = path
        self.memory_max = memory_max

    def enter(self) -> None:
        """Move the calling process in, before it allocates what is to count. Raises OSError."""
        _must_write(self.path / "cgroup.procs", "0")

    def kill(self) -> None:
        """Kill every process in it at once, however detached."""
        _kill(self.path)

    def empty(self) -> bool:
        """Whether it has no process."""
        return _event(self.path / "cgroup.events", "populated") == 0

    def oom_kills(self) -> int:
        """How many processes in it the kernel has killed for lack of memory."""
        return _event(self.path / "memory.events", "oom_kill")

    def was_full(self) -> bool:
        """Whether it has reached its own memory limit."""
        return _event(self.path / "memory.events", "oom") > 0

    def peak(self) -> int | None:
        """The most bytes of memory that it has used; None before Linux 5.19."""
        words = words_of(self.path / "memory.peak")
        return int(words[0]) if words and words[0].isdigit() else None

    def remove(self) -> bool:
        """Remove it; False while processes are still dying in it."""
        return _remove(self.path)


# -- finding the subtree ------------------------------------------------------------------------------


def _mount() -> Path | None:
    """Where this process sees the version 2 hierarchy mounted."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        if after.split(" ")[:1] == ["cgroup2"] and before.split(" ")[3] == "/":
            return Path(before.split(" ")[4].encode().decode("unicode_escape"))
    return None


def _own_path() -> str | None:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::/") and "/../" not in line), None)


def _is_ours(root: Path, *, top: bool) -> bool:
    files = [root, root / "cgroup.procs", root / "cgroup.subtree_control"]
    if not all(os.access(path, os.W_OK) for path in files):
        return False
    # The top of a namespace was given away with it; the machine's own top has no cgroup.type.
    return _is_marked(root) or (top and (root / "cgroup.type").exists())


def _is_marked(root: Path) -> bool:
    """Whether the service manager set its extended attribute, a user attribute since systemd 251."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(root, name) == b"1"
    return False


def _file_name(name: str) -> str:
    """A pool's name as a folder's name: readable, unique, at most 200 bytes."""
    safe = "".join(
        c if c.isascii() and (c.isalnum() or c in "-_") else "".join(f"%{byte:02x}" for byte in c.encode())
        for c in name
    )
    if len(safe) <= 200:
        return safe
    return safe[:180] + "%" + hashlib.sha256(name.encode()).hexdigest()[:16]


# -- the kernel's files ------------------------------------------------------------------------


def _must_write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _write(path: Path, text: str) -> bool:
    try:
        _must_write(path, text)
    except OSError:
        return False
    return True


def _event(path: Path, name: str) -> int:
    words = words_of(path)
    for key, value in zip(words[::2], words[1::2], strict=False):
        if key == name and value.isdigit():
            return int(value)
    return 0


def _enable_controllers(path: Path, controllers: frozenset[str] | set[str]) -> bool:
    """Enable controllers for child groups, as far as they can be; False if a process is in the way."""
    control = path / "cgroup.subtree_control"
    for name in controllers - set(words_of(control)):
        try:
            _must_write(control, f"+{name}")
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
    return True


def _kill(path: Path) -> None:
    if _write(path / "cgroup.kill", "1") or not path.exists():
        return
    # Before Linux 5.14: frozen, none of its processes can fork while they are killed one by one.
    _write(path / "cgroup.freeze", "1")
    for folder in (path, *path.glob("*/")):
        for pid in words_of(folder / "cgroup.procs"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGKILL)
    _write(path / "cgroup.freeze", "0")


def _remove(path: Path) -> bool:
    """Remove a group and those below it, deepest first."""
    with contextlib.suppress(OSError):
        for folder in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
