"""Enqueue inside the caller's own transaction: the job exists if and only if that transaction commits."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from workerd.client.admission import insert, insert_alone
from workerd.client.committing import after_commit
from workerd.client.foreign import ForeignSession
from workerd.client.model import Enqueued
from workerd.client.spec import Duration, JobSpec, check
from workerd.config.model import Node
from workerd.process.context import Paths
from workerd.process.sockets import poke
from workerd.store.connection import Tx

DEFAULT_RUNTIME = Node().runtime_dir
"""Where the local dispatcher listens unless its configuration says otherwise."""


def enqueue(
    connection: Any,
    handler: str,
    vars: Mapping[str, Any] | None = None,
    *,
    id: str | uuid.UUID | None = None,
    delay: Duration | None = None,
    run_at: datetime | str | None = None,
    priority: int = 0,
    unique_key: str | None = None,
    deadline: Duration | None = None,
    max_attempts: int | None = None,
    meta: Any = None,
) -> Enqueued:
    """Insert a job through `connection`, in the transaction that is open there; see JobSpec.

    `connection`: a PEP 249 connection to MySQL or MariaDB (PyMySQL, mysqlclient, …), a sqlite3 connection,
    a SQLAlchemy Connection or Session. Handler and vars are not looked up: the attempt checks them. Commit
    is yours; with SQLAlchemy the local dispatcher is woken after it, else call `workerd.wake()`, or the job
    starts within `dispatcher.poll`.

    Raises ValueError for a wrong argument, TypeError for another kind of connection, and the driver's errors.
    """
    spec = JobSpec(
        handler=handler,
        vars=vars or {},
        id=id,
        delay=delay,
        run_at=run_at,
        priority=priority,
        unique_key=unique_key,
        deadline=deadline,
        max_attempts=max_attempts,
        meta=meta,
    )
    checked, tx = check(spec), Tx(ForeignSession(connection))
    done = insert_alone(tx, checked) if checked.plain else insert(tx, [checked])[0]
    after_commit(connection, wake)
    return done


def wake(runtime_dir: Path | str | None = None) -> bool:
    """Tell this machine's dispatcher that there is work; false if none listens in `runtime_dir`."""
    folder = DEFAULT_RUNTIME if runtime_dir is None else Path(runtime_dir)
    return poke(Paths(Node(runtime_dir=folder)).wake)
