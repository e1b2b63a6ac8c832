"""What a node needs before its first fork: folders, lock, incarnation, runtime files."""

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
from workerd.runtime.child import descendants_of, is_alive
from workerd.runtime.own_files import folder_fault, open_own
from workerd.runtime.paths import Paths

LOCK_WAIT_S = 10.0
"""How long to wait for the children of a dead supervisor, which the kernel is killing."""
KILL_LEFTOVERS_AFTER_S = 1.0
"""A process that still holds a dead supervisor's lock then (a stopped one, say) is killed."""
LOCK_POLL_S = 0.01
MAX_INCARNATIONS = 1000
"""Former incarnations that are kept: their rows are rescued at once, since the lock proves them dead."""


class BootError(WorkerdError):
    """The daemon cannot start on this machine."""


class AlreadyRunning(BootError):
    """Another daemon holds the lock of this state folder."""

    def __init__(self, pid: int, where: Path) -> None:
        super().__init__(
            f"workerd is running already with process id {pid} ({where} is locked); "
            "stop it first, or give this one its own node.state_dir and node.runtime_dir."
        )
        self.pid = pid


def cannot_write(paths: Paths, error: OSError) -> str:
    """One sentence about a folder that cannot be worked in."""
    return (
        f"cannot write in {paths.state} or {paths.runtime}: {error.strerror}; free space there, "
        "or set node.state_dir and node.runtime_dir to other folders."
    )


def make_folders(paths: Paths) -> None:
    """The runtime and state folders, private where they must be, and nobody else's. Raises BootError."""
    for path, mode in (
        (paths.runtime, 0o755),
        (paths.private, 0o700),
        (paths.state, 0o750),
        (paths.spool, 0o700),
    ):
        try:
            path.mkdir(mode, parents=True, exist_ok=True)
            if path not in (paths.runtime, paths.state):
                _make_private(path, mode)
            # The other two may have been made in advance, with modes of their own.
            fault = folder_fault(path)
        except OSError as error:
            key = "runtime_dir" if path in (paths.runtime, paths.private) else "state_dir"
            raise BootError(
                f"cannot make the folder {path}: {error.strerror}; run as a user who may, "
                f"or set node.{key} to a folder of your own."
            ) from error
        if fault:
            raise BootError(fault)
    _open_as_shared(paths)


def _open_as_shared(paths: Paths) -> None:
    """Who may reach the socket `wake` of the first generation may reach that of each later one."""
    if paths.runtime != paths.shared_runtime:
        mode = paths.shared_runtime.stat().st_mode & 0o755
        for path in (paths.runtime.parent, paths.runtime):
            path.chmod(mode)


def _make_private(path: Path, mode: int) -> None:
    """Set the mode of a folder that is no link to another one. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def take_lock(path: Path) -> int:
    """Lock `path` and write our pid into it; returns the descriptor, which children inherit.

    The lock is free only when the last process of a node is gone, so a start after a crash waits for that
    and never meets leftovers. Raises AlreadyRunning, BootError.
    """
    try:
        fd = open_own(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise BootError(f"cannot open {path}: {error.strerror}; run as the user who owns it.") from error
    try:
        _wait_for_lock(fd, path)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _wait_for_lock(fd: int, path: Path) -> None:
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise BootError(f"cannot lock {path}: {error.strerror}.") from error
        pid = _pid_in(fd)
        if _lives(pid) or time.monotonic() > end:
            raise AlreadyRunning(pid, path)
        if time.monotonic() > end - LOCK_WAIT_S + KILL_LEFTOVERS_AFTER_S:
            kill_leftovers(fd)
        time.sleep(LOCK_POLL_S)


def _pid_in(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _lives(pid: int) -> bool:
    if pid <= 0:
        return True  # the holder is just writing it
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return is_alive(pid)  # it may be hidden from other processes
    return state not in ("Z", "X")


def kill_leftovers(lock: int) -> None:
    """Kill every other workerd process that has the lock file open, and all its descendants.

    Their supervisor is dead, and what still holds the lock is stopped or stuck. Whether a role has it open
    only root can see; one without a supervisor has no right to live, whatever it holds.
    """
    ours = os.fstat(lock)
    for name in filter(str.isdigit, os.listdir("/proc")):
        if int(name) == os.getpid() or not _title(name).startswith(b"workerd: "):
            continue
        try:
            leftover = _has_open(name, ours)
        except PermissionError:
            leftover = not _title(_parent(name)).startswith(b"workerd: ") and not _is_supervisor(name)
        except OSError:
            leftover = False
        if leftover:
            _kill_branch(int(name))


def _is_supervisor(pid: str) -> bool:
    """Whether it is one of another daemon: ours is dead."""
    return _title(pid).startswith(b"workerd: supervisor")


def _has_open(pid: str, file: os.stat_result) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder / fd), file):
                return True
    return False


def _parent(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return "0"


def _kill_branch(pid: int) -> None:
    # A killed pool cannot end what its jobs have started, and nothing else would.
    for each in (pid, *descendants_of(pid)):
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)


def _title(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def begin_incarnation(paths: Paths) -> bytes:
    """A new incarnation id, durably appended to the state folder's list of them."""
    incarnation = new_id()
    try:
        known = paths.incarnations.read_text().split()
    except OSError:
        known = []
    lines = [*known[-(MAX_INCARNATIONS - 1) :], incarnation.hex()]
    fresh = paths.incarnations.with_suffix(".new")
    with fresh.open("w") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(paths.incarnations)
    return incarnation


def remove_old_metrics(paths: Paths) -> None:
    """Remove the metrics of the last start; call it with the lock held, before new ones are written."""
    for path in paths.metrics.glob("*.db"):
        with contextlib.suppress(OSError):
            path.unlink()


class RuntimeFiles:
    """The pid file and the sockets in the runtime folder. Raises BootError when another node has them."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = take_lock(paths.pid)
        self._sockets: list[Path] = []

    @property
    def intact(self) -> bool:
        """Whether pid file and control socket are there; a cleaner of temporary files may remove them."""
        return self._paths.supervisor.exists() and self._paths.pid.exists()

    @property
    def reachable(self) -> bool:
        """Whether the roles' sockets are still where pools and clients connect to them."""
        return all(path.exists() for path in self._sockets)

    def note_sockets(self) -> None:
        """Remember which sockets there are, once every role is up."""
        paths = (self._paths.dispatcher, self._paths.ingester, self._paths.wake)
        self._sockets = [path for path in paths if path.exists()]

    def renew(self) -> None:
        """Make the folders and the pid file anew."""
        make_folders(self._paths)
        if not self._paths.pid.exists():
            # The new one first: taking it may fail, and is tried again.
            former, self._lock = self._lock, take_lock(self._paths.pid)
            os.close(former)

    def remove(self) -> None:
        """Remove all of them, at the end of the node."""
        paths = self._paths
        for path in (paths.supervisor, paths.dispatcher, paths.ingester, paths.wake, paths.pid):
            path.unlink(missing_ok=True)
        os.close(self._lock)
