"""Outcomes that former generations of the daemon have left: they are replayed with ours."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from workerd import log
from workerd.ingester.spool import DAMAGED_PREFIX
from workerd.runtime.generations import Generations

_log = log.get_logger("ingester")


def inherit(generations: Generations, spool: Path) -> None:
    """Move what they have spooled into our own folder, before that is opened.

    A generation cannot start meanwhile. What cannot be moved stays until the next start.
    """
    for number in generations.others():
        with generations.locked(number) as free:
            if not free:
                continue
            for path in sorted(generations.paths(number).spool.glob("*.db")):
                if path.name.startswith(DAMAGED_PREFIX):
                    continue  # kept for inspection; what could be read of it is replayed
                try:
                    _move(path, spool)
                except (OSError, sqlite3.Error) as error:
                    _log.error("spool.unreadable", file=str(path), error=str(error))


def _move(path: Path, spool: Path) -> None:
    """Move one file; raises OSError, sqlite3.Error if its write-ahead log cannot be written into it."""
    if path.stem == "locked":
        target = spool / path.name
        if target.exists():
            _append(path, target)
            return
    else:
        numbers = [int(known.stem) for known in spool.glob("*.db") if known.stem.isdigit()]
        target = spool / f"{max(numbers, default=0) + 1:012d}.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    os.rename(path, target)
    _log.info("spool.inherited", file=str(path), target=str(target))


def _append(path: Path, target: Path) -> None:
    """Add the outcomes of one file of locked rows to another. Written twice they have no effect."""
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as db:
        db.execute("ATTACH ? AS former", (str(path),))
        db.execute("INSERT INTO main.outcomes (body) SELECT body FROM former.outcomes ORDER BY number")
    path.unlink()
