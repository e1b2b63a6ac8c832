"""Jobs inserted and read by plain SQL through the engine's driver, as another program does it."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pymysql

FINAL_STATUSES = ("completed", "failure", "cancelled")


class Rows:
    """A store by URL, accessed without workerd's own store code."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self.sqlite = self._url.scheme == "sqlite"

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Open a connection in autocommit mode."""
        if self.sqlite:
            connection = sqlite3.connect(
                self._url.path[1:] if self._url.path.startswith("//") else self._url.path, timeout=20
            )
            connection.isolation_level = None
        else:
            query = parse_qs(self._url.query)
            unix_socket = query["unix_socket"][0] if "unix_socket" in query else None
            connection = pymysql.connect(
                user=unquote(self._url.username or ""),
                password=unquote(self._url.password or "").encode("utf-8"),
                host=self._url.hostname or "localhost",
                port=self._url.port or 3306,
                unix_socket=unix_socket,
                # The driver otherwise reads all certificates of the host for each connection: 20 ms.
                ssl_disabled=True if unix_socket else None,
                database=self._url.path.lstrip("/"),
                charset="utf8mb4",
                autocommit=True,
            )
        try:
            yield connection
        finally:
            connection.close()

    def sql(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Run one statement with `%s` placeholders; return its rows as dicts."""
        with self.connection() as connection:
            cursor = connection.cursor()
            cursor.execute(statement.replace("%s", "?") if self.sqlite else statement, values)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def insert(self, handler: str, vars: object = None, **columns: Any) -> bytes:
        """Insert a job with one plain INSERT; return its id."""
        job_id = columns.pop("id", None) or uuid.uuid4().bytes
        text = vars if isinstance(vars, (str, bytes)) else json.dumps(vars or {})
        given = {"id": job_id, "handler": handler, "vars": text, **columns}
        names = ", ".join(given)
        self.sql(
            f"INSERT INTO workerd_jobs ({names}) VALUES ({', '.join(['%s'] * len(given))})", *given.values()
        )
        return job_id

    def insert_many(self, handler: str, vars: list[object]) -> list[bytes]:
        """Insert many jobs in one transaction, retried on deadlock and lock timeout; return their ids."""
        ids = [uuid.uuid4().bytes for _ in vars]
        rows = [(i, handler, json.dumps(v)) for i, v in zip(ids, vars, strict=True)]
        while True:
            try:
                self._insert(rows)
                return ids
            except pymysql.OperationalError as error:
                if error.args[0] not in (1205, 1213):
                    raise

    def _insert(self, rows: list[tuple[bytes, str, str]]) -> None:
        with self.connection() as connection:
            cursor = connection.cursor()
            cursor.execute("BEGIN IMMEDIATE" if self.sqlite else "BEGIN")
            mark = "?" if self.sqlite else "%s"
            cursor.executemany(
                f"INSERT INTO workerd_jobs (id, handler, vars) VALUES ({mark}, {mark}, {mark})", rows
            )
            connection.commit()

    def attempts(self, job_id: bytes) -> list[dict[str, Any]]:
        """Return all attempts of a job, oldest first."""
        return self.sql("SELECT * FROM workerd_jobs WHERE id = %s ORDER BY attempt", job_id)

    def last(self, job_id: bytes) -> dict[str, Any]:
        """Return the newest attempt of a job."""
        return self.attempts(job_id)[-1]

    def counts(self, column: str = "status") -> dict[str, int]:
        """Return the number of rows per value of a column."""
        rows = self.sql(f"SELECT {column} AS value, COUNT(*) AS n FROM workerd_jobs GROUP BY {column}")
        return {row["value"]: row["n"] for row in rows}

    def of(self, ids: Sequence[bytes], columns: str = "id, attempt, status, reason") -> list[dict[str, Any]]:
        """Return these columns of all attempts of these jobs, 500 jobs per query."""
        rows: list[dict[str, Any]] = []
        with self.connection() as connection:
            for start in range(0, len(ids), 500):
                part = ids[start : start + 500]
                marks = ", ".join(["?" if self.sqlite else "%s"] * len(part))
                cursor = connection.cursor()
                cursor.execute(f"SELECT {columns} FROM workerd_jobs WHERE id IN ({marks})", part)
                names = [column[0] for column in cursor.description]
                rows += [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return rows

    def ended(self, *ids: bytes) -> bool:
        """Whether each of these jobs has a final status."""
        rows = self.of(ids, "id, status")
        return {row["id"] for row in rows if row["status"] in FINAL_STATUSES} == set(ids)


def assert_settled(rows: Rows) -> None:
    """Assert the clean state of a store.

    No claim, one current row per job, no gaps, times in order, each failed attempt counted in its group.
    """
    claims = rows.sql("SELECT id, attempt, handler FROM workerd_jobs WHERE status = 'inprogress'")
    assert claims == []
    broken = rows.sql(
        "SELECT id, COUNT(*) AS attempts, MAX(attempt) AS newest,"
        " SUM(CASE WHEN status = 'retry' THEN 0 ELSE 1 END) AS states"
        " FROM workerd_jobs GROUP BY id"
        " HAVING COUNT(*) <> MAX(attempt) OR SUM(CASE WHEN status = 'retry' THEN 0 ELSE 1 END) <> 1"
    )
    assert broken == []
    disordered = rows.sql(
        "SELECT id, attempt, claimed_at, started_at, finished_at, ingested_at FROM workerd_jobs"
        " WHERE claimed_at > started_at OR started_at > finished_at OR finished_at > ingested_at"
    )
    assert disordered == []
    bad = "('error','failure','deadline','crashed','oom','lost','refused')"
    uncounted = rows.sql(
        f"SELECT id, attempt, reason FROM workerd_jobs WHERE (reason IN {bad}) <> (fingerprint IS NOT NULL)"
        # Not the row that stands for a run of a recurring workflow, which is no attempt.
        " AND (COALESCE(unique_key, '') <> '~cooler' OR node_id IS NOT NULL)"
    )
    assert uncounted == []
    counted = rows.sql("SELECT fingerprint, handler, kept FROM workerd_errors ORDER BY 1, 2")
    counted_again = rows.sql(
        "SELECT fingerprint, handler, COUNT(*) AS kept FROM workerd_jobs WHERE fingerprint IS NOT NULL"
        " GROUP BY fingerprint, handler ORDER BY 1, 2"
    )
    # MySQL takes no notice of spaces at the end of a name.
    assert [_unpadded(row) for row in counted] == [_unpadded(row) for row in counted_again]


def _unpadded(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "handler": row["handler"].rstrip(" ")}
