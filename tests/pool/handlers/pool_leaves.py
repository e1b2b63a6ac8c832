"""A handler whose import registers a function that runs when its worker exits."""

from __future__ import annotations

import atexit
import os
import time
from pathlib import Path


def _leave() -> None:
    folder = Path(os.environ["LEAVES_IN"])
    (folder / f"began-{os.getpid()}").touch()
    while (folder / "hang").exists():
        time.sleep(0.01)
    (folder / f"left-{os.getpid()}").touch()


atexit.register(_leave)


def pid() -> int:
    return os.getpid()
