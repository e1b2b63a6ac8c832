"""Requests inserted and read by plain SQL, as another program does it."""

from __future__ import annotations

import json
import uuid
from typing import Any

from tests.support.rows import Rows


class RequestRows:
    """The requests of one store; ids are 16 bytes."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def insert(self, workflow: str, params: object = None) -> bytes:
        """Insert a row with only the required columns; return its id."""
        request_id = uuid.uuid4().bytes
        self.rows.sql(
            "INSERT INTO workerd_requests (id, workflow, params) VALUES (%s, %s, %s)",
            request_id, workflow, json.dumps(params or {}),
        )  # fmt: skip
        return request_id

    def row(self, request_id: bytes) -> dict[str, Any]:
        """Return the row of a request."""
        (row,) = self.rows.sql("SELECT * FROM workerd_requests WHERE id = %s", request_id)
        return row

    def status(self, request_id: bytes) -> str:
        """Return the status of a request."""
        return str(self.row(request_id)["status"])

    def ended(self, request_id: bytes) -> bool:
        """Whether a request has ended."""
        return self.row(request_id)["completed_at"] is not None

    def jobs(self, request_id: bytes) -> dict[str, dict[str, Any]]:
        """Return the newest rows of its jobs, by name."""
        rows = self.rows.sql(
            "SELECT * FROM workerd_jobs WHERE request_id = %s AND status <> 'retry'", request_id
        )
        assert len({row["name"] for row in rows}) == len(rows), rows
        return {row["name"]: row for row in rows}

    def job_statuses(self, request_id: bytes) -> dict[str, str]:
        """Return the statuses of its jobs, by name."""
        return {name: row["status"] for name, row in self.jobs(request_id).items()}

    def payload(self, request_id: bytes, name: str) -> Any:
        """Return the decoded JSON payload of one of its jobs."""
        return json.loads(self.jobs(request_id)[name]["payload"])


def uuid_text(request_id: bytes) -> str:
    """Format an id as the command line does."""
    return str(uuid.UUID(bytes=request_id))
