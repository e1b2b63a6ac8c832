"""Files and folders that must be the daemon's own: no symbolic link, no writer but its user.

Who may write a folder may replace any file in it, and so decide which process a pid file names, or where
what is written as root arrives.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path


def open_own(path: Path, flags: int, mode: int = 0o640) -> int:
    """Open a regular file, close-on-exec and without following a link. Raises OSError."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(fd)
        raise OSError(errno.EINVAL, "expected a regular file with one name")
    return fd


def folder_fault(path: Path) -> str:
    """What is wrong with a folder that others own or may write, as a sentence; empty if nothing is."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is not a folder; remove it, or name another one."
    if status.st_uid not in (os.geteuid(), 0):
        owner = user_name(status.st_uid)
        return f"{path} belongs to {owner}; run workerd as {owner}, or give it a folder of its own."
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not _is_volume(path, status):
        return (
            f"{path} may be written by other users; `chmod go-w {path}`, or give workerd a folder of its own."
        )
    return ""


def _is_volume(path: Path, status: os.stat_result) -> bool:
    """Whether it was mounted into a container, which nobody else lives in: those are often 0777."""
    if status.st_uid != 0 or not os.path.ismount(path):
        return False
    try:
        # The second process of a host is always the kernel's; containers do not see it.
        return Path("/proc/2/comm").read_text().strip() != "kthreadd"
    except OSError:
        return True


def user_name(uid: int) -> str:
    """The user's name, or `uid N` if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
