"""Whether the daemon may do all that it does in the store: each kind of statement once, on no row."""

from __future__ import annotations

from workerd.store.base import Tx

_OF_EACH_JOB = {
    "workerd_requests": "id, workflow, params",
    "workerd_jobs": "id, handler",
    "workerd_schedules": "name, kind",
    "workerd_handlers": "name",
    "workerd_nodes": "id, name, lease_until",
}
_OF_SOME = {
    "workerd_request_jobs": "id, request_id, handler",
    "workerd_request_needs": "need, job",
    "workerd_signals": "request_id, name, payload, created_at",
    "workerd_errors": "fingerprint, handler, error_class, job_id, attempt, first_seen, last_seen",
    "workerd_logs": "id, attempt, text",
    "workerd_audit": "id, at, actor, role, via, action",
    "workerd_slots": "limit_name, n",
    "workerd_rates": "limit_name",
    "workerd_ticks": "name, tick",
    "workerd_revisions": "name",
}
"""Of each table, the columns without a default."""
_NEVER = {("workerd_handlers", "DELETE"), ("workerd_revisions", "DELETE"), ("workerd_audit", "UPDATE")}


def _statements(table: str, names: str) -> dict[str, str]:
    key = names.partition(",")[0]
    # The server looks at privileges, and at its own state, before it looks for rows.
    found = {
        "SELECT": f"SELECT {key} FROM {table} WHERE 1 = 0",
        "INSERT": f"INSERT INTO {table} ({names}) SELECT {names} FROM {table} WHERE 1 = 0",
        "UPDATE": f"UPDATE {table} SET {key} = {key} WHERE 1 = 0",
        "DELETE": f"DELETE FROM {table} WHERE 1 = 0",
    }
    return {privilege: sql for privilege, sql in found.items() if (table, privilege) not in _NEVER}


STATEMENTS = {table: _statements(table, names) for table, names in (_OF_EACH_JOB | _OF_SOME).items()}
"""By table and privilege."""


def run(tx: Tx, sql: str) -> None:
    """Run one of them. Raises StoreAway, with the server's words, if the server or a privilege forbids it."""
    if sql.startswith("SELECT"):
        tx.query(sql)
    else:
        tx.execute(sql)


def probe(tx: Tx) -> None:
    """Run those of the tables without which no job runs: each costs a round trip. Raises as `run`."""
    for table in _OF_EACH_JOB:
        for sql in STATEMENTS[table].values():
            run(tx, sql)
