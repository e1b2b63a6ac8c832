"""The daemon without a service manager: found by its pid file, started detached, with a log file."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from workerd.cli.faults import Ended, Failed, report
from workerd.config.model import Config
from workerd.errors import WorkerdError
from workerd.process.context import Paths

HANDOVER = 10.0
"""Seconds that a detached daemon may take to say its process id."""


_DAEMON = "import sys; from workerd.cli.background import detached; sys.exit(detached())"


class Running:
    """A daemon that holds the lock on its pid file: a file that nobody has locked is a stale one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def find(cls, config: Config) -> Running | None:
        """The daemon of this configuration, None if there is none. Raises Failed if nobody may know."""
        path = Paths(config.node).pid
        pid = _holder(path)
        if pid is None:
            return None
        try:
            found = cls(pid)
        except ProcessLookupError:
            return None
        # The pid named this very process only if the lock is still held now that its pidfd is open.
        return found if _holder(path) == pid else None

    def lives(self) -> bool:
        """Whether it has not ended."""
        return not _ended(self._pidfd)

    def signal(self, number: int) -> None:
        """Send a signal. Raises Failed if this user may not."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise Failed(
                f"You may not signal workerd (process id {self.pid}): "
                f"do it as the user who started it, or as root."
            ) from None


def _holder(path: Path) -> int | None:
    """The pid of who holds the lock on the pid file; None if nobody does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(
            f"{path} cannot be read ({error.strerror}): do this as the user who started workerd."
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(fd)
    return None


class Detached:
    """The daemon that `spawn` started, seen from the command that started it."""

    def __init__(self, pid: int) -> None:
        try:
            self._pidfd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = None

    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._pidfd is not None and not _ended(self._pidfd)


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


def spawn(config: Config, log_file: Path, path: Path | None) -> Detached:
    """Be the daemon in a process without terminal or parent, its output in `log_file`. Raises Failed.

    `path` is what `-c` names.
    """
    try:
        config.node.state_dir.mkdir(0o750, parents=True, exist_ok=True)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise Failed(
            f"{log_file} cannot be written ({error.strerror}): start workerd as a user who may, "
            f"or set node.state_dir to a folder of your own."
        ) from None
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _detach(log, writer, [str(log_file), *([str(path)] if path else [])])
    os.close(writer)
    os.close(log)
    os.waitpid(pid, 0)
    return Detached(_announced(reader))


def _announced(reader: int) -> int:
    """The pid that the detached process wrote. Raises Failed if it died before."""
    os.set_blocking(reader, False)
    end = time.monotonic() + HANDOVER
    text = b""
    while time.monotonic() < end:
        try:
            part = os.read(reader, 32)
        except BlockingIOError:
            time.sleep(0.005)
            continue
        if not part:
            break
        text += part
    os.close(reader)
    if not text.isdigit():
        raise Failed("workerd could not be put into the background: `workerd run` shows what is wrong.")
    return int(text)


def _detach(log: int, writer: int, arguments: list[str]) -> NoReturn:
    """In the first child: become a daemon, say the pid, begin anew."""
    from daemon import DaemonContext

    try:
        with DaemonContext(
            # A relative path in the configuration must go on to name the same file.
            working_directory=str(Path.cwd()),
            umask=0o027,
            prevent_core=False,  # of its own, a crash of a handler's C library may be worth a core file
            files_preserve=[writer],
            stdout=os.fdopen(os.dup(log), "w"),
            stderr=os.fdopen(os.dup(log), "w"),
            # The supervisor sets its own dispositions; it has no terminal to be stopped by.
            signal_map={},
        ):
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)
            # This process has read the store's credentials, which no pool may inherit.
            os.execv(sys.executable, [sys.executable, "-P", "-c", _DAEMON, *arguments])
    finally:
        os._exit(1)


def detached() -> int:
    """Be the daemon that `start` put into the background; returns its exit status."""
    from workerd.cli.serving import serve

    log_file, *path = map(Path, sys.argv[1:])
    try:
        serve(path[0] if path else None, log_file)
    except Ended as ended:
        return ended.status
    except WorkerdError as error:
        return report(error)
    return 0
