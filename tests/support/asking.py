"""Requests as a foreign program makes and reads them: plain SQL."""

from __future__ import annotations

import json
import uuid
from typing import Any

from tests.support.rows import Rows


class Asking:
    """Requests of one store. Ids are the 16 bytes of the column."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def ask(self, workflow: str, params: object = None) -> bytes:
        """One INSERT with nothing but what is required; the id."""
        request_id = uuid.uuid4().bytes
        self.rows.sql(
            "INSERT INTO workerd_requests (id, workflow, params) VALUES (%s, %s, %s)",
            request_id, workflow, json.dumps(params or {}),
        )  # fmt: skip
        return request_id

    def row(self, request_id: bytes) -> dict[str, Any]:
        """The request's row."""
        (row,) = self.rows.sql("SELECT * FROM workerd_requests WHERE id = %s", request_id)
        return row

    def status(self, request_id: bytes) -> str:
        """Its status."""
        return str(self.row(request_id)["status"])

    def over(self, request_id: bytes) -> bool:
        """Whether it has ended."""
        return self.row(request_id)["completed_at"] is not None

    def jobs(self, request_id: bytes) -> dict[str, dict[str, Any]]:
        """Its jobs' current rows, by name."""
        rows = self.rows.sql(
            "SELECT * FROM workerd_jobs WHERE request_id = %s AND status <> 'retry'", request_id
        )
        assert len({row["name"] for row in rows}) == len(rows), rows
        return {row["name"]: row for row in rows}

    def states(self, request_id: bytes) -> dict[str, str]:
        """Its jobs' statuses, by name."""
        return {name: row["status"] for name, row in self.jobs(request_id).items()}

    def payload(self, request_id: bytes, name: str) -> Any:
        """What one of its jobs returned."""
        return json.loads(self.jobs(request_id)[name]["payload"])


def text(request_id: bytes) -> str:
    """An id as the command line shows and takes it."""
    return str(uuid.UUID(bytes=request_id))
