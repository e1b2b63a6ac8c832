"""Where the node's sockets are when node.runtime_dir is not set: a folder that this user can make."""

from __future__ import annotations

import os
import stat
from pathlib import Path

SYSTEM_RUNTIME_DIR = Path("/run/workerd")


def default_runtime_dir(state_dir: Path) -> Path:
    """/run/workerd, else $XDG_RUNTIME_DIR/workerd, else `run` below `state_dir`.

    A daemon takes the first that it can make or write. Commands of a user who may write several find the
    daemon by its socket.
    """
    usable = [folder for folder in _candidates(state_dir) if _is_usable(folder)]
    running = [folder for folder in usable if os.path.exists(folder / "private" / "supervisor")]
    return next(iter(running or usable), SYSTEM_RUNTIME_DIR)


def wake_dir() -> Path:
    """The folder whose dispatcher a client wakes: the first that has its socket, which every user may use."""
    folders = [SYSTEM_RUNTIME_DIR, *_user_folder()]
    return next((folder for folder in folders if os.path.exists(folder / "wake")), SYSTEM_RUNTIME_DIR)


def _candidates(state_dir: Path) -> list[Path]:
    return [SYSTEM_RUNTIME_DIR, *_user_folder(), state_dir / "run"]


def _user_folder() -> list[Path]:
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    return [Path(xdg) / "workerd"] if xdg.startswith("/") else []


def _is_usable(folder: Path) -> bool:
    """Whether this user can write the folder, or make it."""
    for path in (folder, *folder.parents):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            continue
        except OSError:  # it is in a folder of another user, say, or its name is too long
            return False
        return stat.S_ISDIR(mode) and os.access(path, os.W_OK | os.X_OK)
    return False
