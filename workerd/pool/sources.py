"""Which files a pool's code came from, and whether they have changed since: then a reload loads them anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Set

GONE = -1
"""In the place of the time of a file that is not there."""


def imported_since(before: Set[str]) -> dict[str, int]:
    """File -> time of its last change (ns), of every module that is not in `before`.

    What a worker imports only while it runs a job is not seen.
    """
    files = (getattr(sys.modules.get(name), "__file__", None) for name in sys.modules.keys() - before)
    return {file: _changed_at(file) for file in files if isinstance(file, str)}


def changed(sources: Mapping[str, int]) -> bool:
    """Whether any file is another than it was."""
    return any(_changed_at(file) != then for file, then in sources.items())


def _changed_at(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except (OSError, ValueError):
        return GONE
