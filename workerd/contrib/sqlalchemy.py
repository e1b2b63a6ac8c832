"""SQLAlchemy: enqueue in the transaction of any session or connection, with asyncio too.

    from workerd.contrib.sqlalchemy import enqueue, enqueue_async, include_name

The job exists if and only if the transaction commits. The local dispatcher is woken by the commit of a
session; after that of a bare connection call `workerd.wake()`, or the job starts within `dispatcher.poll`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from workerd import transaction
from workerd.document_types import Enqueued
from workerd.job_spec import JobOptions, JobSpec, spec_of

if TYPE_CHECKING:  # what asyncio needs is not installed for everybody
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session, scoped_session

TABLES = "workerd_"
"""What the names of the store's tables begin with."""


def enqueue(
    session: Session | scoped_session[Any] | Connection,
    handler: str | JobSpec,
    vars: Mapping[str, Any] | None = None,
    **options: Unpack[JobOptions],
) -> Enqueued:
    """Insert a job: a handler with its vars and the other fields of JobSpec, or a spec that has them.

    Raises as `workerd.enqueue`.
    """
    return transaction.enqueue_spec(session, spec_of(handler, vars, options))


async def enqueue_async(
    session: AsyncSession | AsyncConnection,
    handler: str | JobSpec,
    vars: Mapping[str, Any] | None = None,
    **options: Unpack[JobOptions],
) -> Enqueued:
    """The same by a session or connection of asyncio."""
    spec = spec_of(handler, vars, options)
    enqueued: Enqueued = await session.run_sync(lambda inner: transaction.enqueue_spec(inner, spec))
    return enqueued


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """For Alembic's `context.configure(include_name=…)`: leave the tables of workerd alone.

    `workerd migrate` creates them; autogenerate would drop those that no model declares.
    """
    return type_ != "table" or not (name or "").startswith(TABLES)
