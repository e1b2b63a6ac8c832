"""workerd itself, measured like the others: MariaDB with durable commits, no broker."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

from benchmarks.harness import Server, config
from benchmarks.peers.jobs import JOBS, LIMITED
from tests.support.daemon import Daemon
from tests.support.rows import Rows
from workerd.client import Client
from workerd.job_spec import JobSpec

LIBRARY = "workerd"
SETTINGS = {"store": "MariaDB", "flush_log_at_trx_commit": 1, "max_crashes": 3, "grace": "0s for C code"}
_server = Server("mariadb")
_TEXT = {
    **dict.fromkeys(LIMITED, 'deadline = "1s"\nmax_attempts = 1\n'),
    "c_code": 'deadline = "1s"\ngrace = "0s"\nmax_attempts = 1\n',  # it would not see the gentle one
    "die": 'backoff = { first = "0s", jitter = 0.0 }\n',
}
_tables = {
    name: f'call = "benchmarks.peers.jobs:{name}"\npool = "all"\n{_TEXT.get(name, "")}' for name in JOBS
}
_POOL = "[pools.all]\nworkers = 2\n"
_path = Path(os.environ["PEER_LOG"]).parent / "workerd"
_node: tuple[Daemon, Rows, Client] | None = None


def _now() -> tuple[Daemon, Rows, Client]:
    """A node on a store of its own."""
    global _node
    if _node is None:
        url = _server.url()
        daemon = Daemon(
            _path / Path(url.partition("?")[0]).name, url, config(_tables, more=_POOL), name="peer"
        )
        daemon.cli("migrate")
        _node = daemon, Rows(url), Client(daemon.path)
    return _node


def command(workers: int) -> list[str]:
    """The command that starts the workers."""
    return [sys.executable, "-m", "workerd", "run", "-c", str(_now()[0].path)]


def send(name: str, **vars: object) -> Any:
    """Enqueue one."""
    return _now()[2].enqueue(name, vars).id


def send_many(name: str, many: list[dict[str, Any]]) -> None:
    """Enqueue them in bulk."""
    for start in range(0, len(many), 1000):
        _now()[2].enqueue_many([JobSpec(handler=name, vars=vars) for vars in many[start : start + 1000]])


def became(job: Any) -> str:
    """The recorded state of the job."""
    row = _now()[1].last(uuid.UUID(job).bytes)
    return f"{row['status']} {row['reason'] or ''}, attempt {row['attempt']}"


def stored() -> int:
    """The number of stored results."""
    return _now()[1].counts().get("completed", 0)


def forget() -> None:
    """Another node on another store."""
    global _node
    if _node is not None:
        _node[2].close()
    _node = None


def close() -> None:
    """End the server."""
    forget()
    _server.__exit__()
