"""Outcomes that the store refuses in any form, set aside in a file."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from workerd import log
from workerd.job import id_text
from workerd.outcome import Outcome

MAX_FILE_BYTES = 64 * 1024 * 1024

_log = log.get_logger("ingester")


class DeadLetters:
    """Appends outcomes to the file `path`, one JSON document a line. `count`: how many were set aside."""

    def __init__(self, path: Path, node_id: bytes) -> None:
        self.count = 0
        self._path = path
        self._node_id = node_id

    def add(self, outcome: Outcome, error: str) -> None:
        """Set an outcome aside; its row stays `inprogress`."""
        self.count += 1
        _log.error(
            "outcome.set_aside",
            job=id_text(outcome.id), attempt=outcome.attempt, handler=outcome.handler, error=error,
            file=str(self._path) if self._append(outcome, error) else None,
        )  # fmt: skip

    def _append(self, outcome: Outcome, error: str) -> bool:
        """Write and sync one line; false if that failed or the file is full."""
        record = msgspec.json.encode(
            {
                "id": id_text(outcome.id),
                "attempt": outcome.attempt,
                "node_id": (outcome.node_id or self._node_id).hex(),
                "why": error,
                "outcome": {name: getattr(outcome, name) for name in outcome.__struct_fields__},
            }
        )
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size + len(record) >= MAX_FILE_BYTES:
                    return False
                os.write(fd, record + b"\n")
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError:
            return False
        return True
