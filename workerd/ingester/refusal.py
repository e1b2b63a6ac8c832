"""What becomes of an outcome that the store does not take: its attempt fails and says so (law 7)."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from workerd.job import Status, id_text
from workerd.log import printable
from workerd.outcome import ERROR_LIMIT, Outcome, Reason

ASIDE_LIMIT = 64 * 1024 * 1024
"""Bytes of the file of outcomes that could not be recorded in any form."""


def refused(outcome: Outcome, why: str) -> Outcome:
    """The outcome as a failure, without anything that a handler could have put into it."""
    return msgspec.structs.replace(
        bare(outcome, why),
        started_at=outcome.started_at,
        finished_at=outcome.finished_at,
        run_at=outcome.run_at,
        usage=outcome.usage,
        pid=outcome.pid,
    )


def bare(outcome: Outcome, why: str) -> Outcome:
    """As `refused`, with nothing but the attempt's identity and what follows from its end."""
    return Outcome(
        id=outcome.id,
        attempt=outcome.attempt,
        claimed_at=outcome.claimed_at,
        handler=outcome.handler,
        status=Status.FAILURE,
        reason=Reason.REFUSED,
        success=False,
        error=_one_line(why),
        again_us=outcome.again_us,
        node_id=outcome.node_id,
        request_id=outcome.request_id,
        step=outcome.step,
        name=outcome.name,
        unique_key=outcome.unique_key,
    )


def _one_line(why: str) -> str:
    return printable(why, ERROR_LIMIT).encode("utf-8", "replace")[:ERROR_LIMIT].decode("utf-8", "ignore")


def set_aside(path: Path, outcome: Outcome, why: str, node_id: bytes) -> bool:
    """Append the outcome to a file for a person, as a line of JSON, fsynced; false if that failed."""
    line = msgspec.json.encode(
        {
            "id": id_text(outcome.id),
            "attempt": outcome.attempt,
            "node_id": (outcome.node_id or node_id).hex(),
            "why": why,
            "outcome": {name: getattr(outcome, name) for name in outcome.__struct_fields__},
        }
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size + len(line) >= ASIDE_LIMIT:
                return False
            os.write(fd, line + b"\n")
            os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True
