"""Before the first fork: folders, lock, incarnation, runtime files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from pathlib import Path

from workerd.errors import WorkerdError
from workerd.job import new_id
from workerd.runtime.child import descendants_of
from workerd.runtime.paths import Paths

LOCK_WAIT = 10.0
"""Seconds to wait for the rest of a dead supervisor's tree, which the kernel is killing."""
LEFT_OVER = 1.0
"""Seconds; who still has a dead supervisor's lock then (one that was stopped, say) is killed."""
REMEMBERED = 1000
"""Former incarnations that are kept; their rows are rescued at once, since the lock proves them dead."""


class BootError(WorkerdError):
    """The daemon could not take its place on this machine."""


class AlreadyRunning(BootError):
    """Another daemon holds the lock of this state folder."""

    def __init__(self, pid: int, where: Path) -> None:
        super().__init__(
            f"workerd is running already with process id {pid} ({where} is locked); "
            "stop it first, or give this one its own node.state_dir and node.runtime_dir."
        )
        self.pid = pid


def make_folders(paths: Paths) -> None:
    """The runtime and state folders, private where they must be. Raises BootError."""
    for path, mode in (
        (paths.runtime, 0o755),
        (paths.private, 0o700),
        (paths.state, 0o750),
        (paths.spool, 0o700),
    ):
        try:
            path.mkdir(mode, parents=True, exist_ok=True)
            if path not in (paths.runtime, paths.state):
                path.chmod(mode)  # the other two may have been made, with their rights, by somebody else
        except OSError as error:
            key = "runtime_dir" if path in (paths.runtime, paths.private) else "state_dir"
            raise BootError(
                f"cannot make the folder {path}: {error.strerror}; run as a user who may, "
                f"or set node.{key} to a folder of your own."
            ) from error


def take_lock(path: Path) -> int:
    """A descriptor with the lock on `path`, with our pid in it; children inherit it.

    The lock is free only when the last process of the tree is gone: a start after a crash waits for that,
    so that it never meets a left-over. Raises AlreadyRunning, BootError.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise BootError(f"cannot open {path}: {error.strerror}; run as the user who owns it.") from error
    end = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise BootError(f"cannot lock {path}: {error.strerror}.") from error
        else:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            return fd
        pid = _pid_in(fd)
        if _lives(pid) or time.monotonic() > end:
            os.close(fd)
            raise AlreadyRunning(pid, path)
        if time.monotonic() > end - LOCK_WAIT + LEFT_OVER:
            end_left_overs(fd)
        time.sleep(0.01)


def _pid_in(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _lives(pid: int) -> bool:
    if pid <= 0:
        return True  # the holder is writing it just now
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def end_left_overs(lock: int) -> None:
    """Kill every process of workerd, but this one, that has the lock file open, and all below it.

    Their supervisor is dead, and what holds the lock for so long is stopped or stuck.
    """
    ours = os.fstat(lock)
    for name in filter(str.isdigit, os.listdir("/proc")):
        if int(name) == os.getpid() or not _is_workerd(name):
            continue
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{name}/fd"):
                if os.path.samestat(os.stat(f"/proc/{name}/fd/{fd}"), ours):
                    _kill_branch(int(name))
                    break


def _kill_branch(pid: int) -> None:
    """A pool that is killed cannot end what its jobs have started, and nobody else would."""
    for each in (pid, *descendants_of(pid)):
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)


def _is_workerd(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"workerd: ")
    except OSError:
        return False


def begin_incarnation(paths: Paths) -> bytes:
    """A fresh incarnation id, added durably to the list of those that this state folder has seen."""
    incarnation = new_id()
    try:
        known = paths.incarnations.read_text().split()
    except OSError:
        known = []
    lines = [*known[-(REMEMBERED - 1) :], incarnation.hex()]
    fresh = paths.incarnations.with_suffix(".new")
    with fresh.open("w") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(paths.incarnations)
    return incarnation


def forget_numbers(paths: Paths) -> None:
    """Remove the metrics of the last start; called with the lock held, before anybody writes new ones."""
    for path in paths.metrics.glob("*.db"):
        with contextlib.suppress(OSError):
            path.unlink()


class RuntimeFiles:
    """Made at the start, made anew if another program removed them, removed at the end. Raises BootError."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = take_lock(paths.pid)
        self._sockets: list[Path] = []

    @property
    def intact(self) -> bool:
        """Whether nobody removed them; a cleaner of temporary files may have."""
        return self._paths.supervisor.exists() and self._paths.pid.exists()

    @property
    def reachable(self) -> bool:
        """Whether the roles' sockets are still where the pools and clients look for them."""
        return all(path.exists() for path in self._sockets)

    def note_sockets(self) -> None:
        """Every role is up: remember which sockets there are."""
        paths = (self._paths.dispatcher, self._paths.ingester, self._paths.wake)
        self._sockets = [path for path in paths if path.exists()]

    def renew(self) -> None:
        """Make the folders and the pid file again."""
        make_folders(self._paths)
        if not self._paths.pid.exists():
            os.close(self._lock)
            self._lock = take_lock(self._paths.pid)

    def remove(self) -> None:
        """Leave nothing that a process could be looked for by."""
        paths = self._paths
        for path in (paths.supervisor, paths.dispatcher, paths.ingester, paths.wake, paths.pid):
            path.unlink(missing_ok=True)
        os.close(self._lock)
