"""Sets outcomes aside that the store refuses in any form."""

from __future__ import annotations

from pathlib import Path

import msgspec

from workerd import log
from workerd.job import AttemptRef, id_text
from workerd.outcome import Outcome
from workerd.runtime.dead_letters import DeadLetter, DeadLetterFile

_log = log.get_logger("ingester")


class DeadLetters:
    """Outcomes in the file `path`, for an operator to bring back."""

    def __init__(self, path: Path, node_id: bytes) -> None:
        self._file = DeadLetterFile(path)
        self._node_id = node_id
        self._is_empty = False

    def refs(self) -> frozenset[AttemptRef]:
        """The attempts whose end is in the file, those of former processes too, until it is brought back."""
        if self._is_empty:
            return frozenset()
        found = self._file.refs()
        self._is_empty = not found
        return found

    def add(self, outcome: Outcome, error: str) -> None:
        """Set an outcome aside; its row stays `inprogress`."""
        self._is_empty = False
        if outcome.node_id is None:
            outcome = msgspec.structs.replace(outcome, node_id=self._node_id)
        _log.error(
            "outcome.set_aside",
            job=id_text(outcome.id), attempt=outcome.attempt, handler=outcome.handler, error=error,
            file=str(self._file.path) if self._file.append([DeadLetter(outcome, error)]) else None,
        )  # fmt: skip
