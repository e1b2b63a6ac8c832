"""The node's files in its runtime folder: the pid file, and the folder in which the roles' sockets are."""

from __future__ import annotations

import os
from pathlib import Path

from workerd.process.context import Paths
from workerd.supervisor import boot


class RuntimeFiles:
    """Made at the start, made anew if another program removed them, removed at the end. Raises BootError."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = boot.take_lock(paths.pid)
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
        boot.make_folders(self._paths)
        if not self._paths.pid.exists():
            os.close(self._lock)
            self._lock = boot.take_lock(self._paths.pid)

    def remove(self) -> None:
        """Leave nothing that a process could be looked for by."""
        paths = self._paths
        for path in (paths.supervisor, paths.dispatcher, paths.ingester, paths.wake, paths.pid):
            path.unlink(missing_ok=True)
        os.close(self._lock)
