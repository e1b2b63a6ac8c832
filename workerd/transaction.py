"""Enqueue inside the caller's own transaction: the job exists if and only if that transaction commits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack
from weakref import WeakKeyDictionary

from workerd.config.model import NodeConfig
from workerd.config.otel_config import OtelConfig
from workerd.config.runtime_dir import wake_dir
from workerd.document_types import Enqueued
from workerd.job_spec import JobOptions, JobSpec, check
from workerd.operations.access import is_django, join
from workerd.operations.enqueue import insert, insert_alone
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import poke
from workerd.tracing import switch as tracing

_callbacks: WeakKeyDictionary[Any, Callable[[], object] | None] = WeakKeyDictionary()
"""SQLAlchemy sessions with a listener, and the call due at their next commit."""


def enqueue(
    connection: Any, handler: str, vars: Mapping[str, Any] | None = None, **options: Unpack[JobOptions]
) -> Enqueued:
    """Insert a job through `connection`, in its open transaction; `options` are the other fields of JobSpec.

    `connection`: a PEP 249 connection to MySQL or MariaDB (PyMySQL, mysqlclient, …), a sqlite3 connection, a
    SQLAlchemy Connection or Session, `django.db.connection`. Handler and vars are not looked up: the attempt
    checks them. The caller commits; Django and a SQLAlchemy Session then wake the local dispatcher; with
    other libraries call `workerd.wake()`, or the job starts within `dispatcher.poll`. With
    WORKERD_OTEL__ENABLED=true in the environment, the enqueue is a span.

    Raises InvalidValue for a wrong option, TypeError for another kind of connection, and the driver's errors.
    """
    return enqueue_spec(connection, JobSpec(handler=handler, vars=vars or {}, **options))


def enqueue_spec(connection: Any, spec: JobSpec) -> Enqueued:
    """The same for a JobSpec."""
    checked = check(spec)
    tx = join(connection)
    traced = tracing.of_enqueues(None, OtelConfig())
    with tracing.sending(traced, [checked]) as sending:
        [job] = sending.jobs
        enqueued = insert_alone(tx, job) if job.plain else insert(tx, [job])[0]
        sending.enqueued = [enqueued]
    after_commit(connection, wake)
    return enqueued


def wake(runtime_dir: Path | str | None = None) -> bool:
    """Wake the dispatcher of this host; false if none listens in `runtime_dir`, or the default folder."""
    folder = wake_dir() if runtime_dir is None else Path(runtime_dir)
    return poke(Paths(NodeConfig(runtime_dir=folder)).wake)


def after_commit(connection: Any, call: Callable[[], object]) -> None:
    """Call after the commit: at once in autocommit mode, never if the library has no event for it."""
    if any(base.__module__.startswith("sqlalchemy.orm") for base in type(connection).__mro__):
        _listen(connection.registry() if hasattr(connection, "registry") else connection, call)
    elif is_django(connection):
        connection.on_commit(call)
    elif _commits_itself(connection):
        call()


def _listen(session: Any, call: Callable[[], object]) -> None:
    if session not in _callbacks:
        from sqlalchemy import event

        event.listen(session, "after_commit", _committed)
    _callbacks[session] = call


def _committed(session: Any) -> None:
    # Releasing a savepoint fires the same event, but makes nothing visible.
    if session.in_nested_transaction():
        return
    call, _callbacks[session] = _callbacks.get(session), None
    if call is not None:
        call()


def _commits_itself(connection: Any) -> bool:
    """Whether a PEP 249 connection is in autocommit mode; false if unknown."""
    in_transaction = getattr(connection, "in_transaction", None)
    if isinstance(in_transaction, bool):
        return not in_transaction
    get_autocommit = getattr(connection, "get_autocommit", None)
    return bool(get_autocommit()) if callable(get_autocommit) else False
