"""The running daemon of a configuration, found by its pid file and proved to be it before it is signalled."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from pathlib import Path

from workerd.cli.errors import CommandFailed
from workerd.cli.output import notify
from workerd.config.build import load, load_running
from workerd.config.model import Config
from workerd.errors import ConfigError
from workerd.runtime.child import is_alive
from workerd.runtime.generations import serving_paths
from workerd.runtime.own_files import open_own, user_name
from workerd.runtime.paths import Paths

ENDING_WAIT_S = 1.0
"""A daemon that ends removes its sockets a moment before it frees the lock of its state folder."""


class RunningDaemon:
    """The process that holds the lock on the pid file; a pid file without a lock is stale.

    The daemon's user can write anything into the file, so root must not signal what it names: the process
    must be that user's, and the kernel must know it as the holder of the lock.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def find(cls, config: Config) -> RunningDaemon | None:
        """The daemon of this configuration, if it runs.

        Raises CommandFailed if the file is unreadable, or the daemon has its sockets elsewhere.
        """
        found = cls._holding(serving_paths(config.node).pid)
        if found is None:
            refuse_elsewhere(config)
        return found

    @classmethod
    def _holding(cls, path: Path) -> RunningDaemon | None:
        pid = _lock_holder(path)
        if pid is None:
            return None
        try:
            found = cls(pid)
        except ProcessLookupError:
            return None
        # The pid may have been reused before its pidfd was open: only the lock proves that it was not.
        return found if _lock_holder(path) == pid else None

    @classmethod
    def elsewhere(cls, config: Config) -> RunningDaemon | None:
        """One that works in this state folder, and does not exit within ENDING_WAIT_S."""
        try:
            found = cls._holding(Paths(config.node).lock)
        except CommandFailed:
            return None
        return None if found is None or has_exited(found._pidfd, ENDING_WAIT_S) else found

    def is_alive(self) -> bool:
        """Whether it has not exited."""
        return not has_exited(self._pidfd)

    def signal(self, signum: int) -> None:
        """Send it a signal. Raises CommandFailed without the permission."""
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise CommandFailed(
                f"You may not signal workerd (process id {self.pid}). "
                f"Do this as the user who started it, or as root."
            ) from None


def refuse_elsewhere(config: Config) -> None:
    """Raise CommandFailed if a daemon works in the state folder, but is not where this command looks."""
    found = RunningDaemon.elsewhere(config)
    # One that starts takes the lock of its state folder a moment before it makes its sockets.
    if found is not None and _lock_holder(serving_paths(config.node).pid) is None:
        raise CommandFailed(
            f"workerd runs with process id {found.pid}, but not with its sockets in "
            f"{config.node.runtime_dir}. Set XDG_RUNTIME_DIR as it was when workerd was started, or "
            f"node.runtime_dir to the folder that it uses."
        )


def _lock_holder(path: Path) -> int | None:
    """The pid in the pid file if a process holds its lock. Raises CommandFailed for one that is not it."""
    try:
        fd = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be read ({error.strerror}). Do this as the user who started workerd."
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(fd, 32, 0).strip()
        pid = int(text) if text.isdigit() else 0
        return _proved(pid, path, os.fstat(fd)) if pid else None
    finally:
        os.close(fd)
    return None


def _proved(pid: int, path: Path, file: os.stat_result) -> int | None:
    """The pid if it is a process of the file's owner that holds the lock, None if it has ended."""
    uids = _uids(pid)
    if not uids and (os.geteuid() == 0 or not is_alive(pid)):
        return None
    # To other users than root it may be hidden, but those can signal no process that is not theirs.
    holders = _flock_holders(file)
    if (uids and uids != {file.st_uid}) or (holders and pid not in holders):
        raise CommandFailed(
            f"{path} names process {pid}, which is not the workerd that holds this file; nothing was "
            f"signalled. Stop workerd as {user_name(file.st_uid)}, who owns the file, then remove the file."
        )
    return pid


def _uids(pid: int) -> set[int]:
    """Real, effective and saved user of a process; empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return set()
    return next({int(uid) for uid in line.split()[1:4]} for line in lines if line.startswith("Uid:"))


def _flock_holders(file: os.stat_result) -> set[int]:
    """The processes that locked a file, as the kernel lists them; empty where it does not say."""
    key = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    try:
        rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return set()
    return {int(row[4]) for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5] == key}


def has_exited(pidfd: int, timeout_s: float = 0.0) -> bool:
    """Whether the process of a pidfd has exited, or does within this time."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def load_running_config(path: Path | None) -> Config:
    """The configuration for a command that a running daemon must answer after a wrong edit, too.

    Where one runs, only what it is found and stopped by need be right. Raises ConfigError.
    """
    try:
        return load(path, os.environ)
    except ConfigError:
        with contextlib.suppress(ConfigError):
            found = load_running(path, os.environ)
            if RunningDaemon.find(found) is not None:
                notify("The configuration is wrong and would not be reloaded; `workerd check` says where.")
                return found
        raise
