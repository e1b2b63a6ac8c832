"""Enqueue by sessions and connections of SQLAlchemy, with asyncio too."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.support.rows import Rows
from tests.test_transaction import engine_of
from workerd import JobSpec, handler
from workerd.config.model import StoreConfig
from workerd.contrib.sqlalchemy import enqueue, enqueue_async, include_name
from workerd.store.engines import open_store


@handler
def mail(to: str) -> None:
    """Nothing."""


def jobs(url: str) -> list[tuple[str, str]]:
    return [
        (r["handler"], r["vars"]) for r in Rows(url).sql("SELECT handler, vars FROM workerd_jobs ORDER BY id")
    ]


def test_a_job_exists_if_and_only_if_the_transaction_commits(store_url: str, store: Any) -> None:
    """By name or as the spec of a decorated handler, in a session or a connection."""
    engine = engine_of(store_url)
    with Session(engine) as session:
        enqueue(session, "mail", {"to": "lost"})
        session.rollback()
        enqueue(session, mail.spec(to="session"))
        session.commit()
    with engine.begin() as connection:
        enqueue(connection, "mail", {"to": "connection"}, priority=3)
    assert sorted(jobs(store_url)) == [("mail", '{"to":"connection"}'), ("mail", '{"to":"session"}')]
    with Session(engine) as session, pytest.raises(TypeError, match="itself"):
        enqueue(session, JobSpec(handler="mail"), {"to": "x"})
    engine.dispose()


def test_sessions_of_asyncio(tmp_path: Path) -> None:
    """The same, awaited."""
    url = f"sqlite:///{tmp_path}/store.db"
    store = open_store(StoreConfig(url=url))
    store.migrate()
    store.close()

    async def main() -> None:
        engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))
        async with AsyncSession(engine) as session:
            await enqueue_async(session, "mail", {"to": "lost"})
            await session.rollback()
            await enqueue_async(session, mail.spec(to="session"))
            await session.commit()
        async with engine.begin() as connection:
            await enqueue_async(connection, "mail", {"to": "connection"})
        await engine.dispose()

    asyncio.run(main())
    assert sorted(jobs(url)) == [("mail", '{"to":"connection"}'), ("mail", '{"to":"session"}')]


def test_alembic_leaves_the_tables_of_workerd_alone() -> None:
    """And sees all others."""
    assert not include_name("workerd_jobs", "table", {})
    assert include_name("orders", "table", {})
    assert include_name(None, "schema", {})
