"""FastAPI: the client as a dependency, opened and closed with the application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.support.servers import DatabaseServer
from tests.support.silent_commit import ALONE, SilentCommit
from workerd.config.model import StoreConfig
from workerd.contrib.fastapi import Jobs, lifespan
from workerd.job import parse_id
from workerd.operations import jobs
from workerd.store import handlers
from workerd.store.engines import open_store


def serve(app: FastAPI, use: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Use the application between its start and its end."""

    async def main() -> None:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
                await use(http)

    asyncio.run(main())


def application(source: str, **options: Any) -> FastAPI:
    app = FastAPI(lifespan=lifespan(source, **options))

    @app.post("/images")
    async def upload(name: str, jobs: Jobs) -> dict[str, str]:
        return {"id": (await jobs.enqueue("thumbnail", {"image": name})).id}

    @app.get("/jobs/{job_id}")
    async def show(job_id: str, jobs: Jobs) -> dict[str, str]:
        return {"status": (await jobs.get(job_id)).status}

    @app.post("/unknown")
    async def unknown(jobs: Jobs) -> None:
        await jobs.enqueue("unknown")

    return app


def test_a_route_enqueues_by_the_dependency(store_url: str, store: Any) -> None:
    """Errors of the client are answers."""
    store.run(lambda tx: handlers.seen(tx, "thumbnail", None, "node"))

    async def use(http: httpx.AsyncClient) -> None:
        job = (await http.post("/images?name=cat.png")).json()
        assert (await http.get(f"/jobs/{job['id']}")).json() == {"status": "new"}
        missing = await http.get("/jobs/00000000-0000-0000-0000-000000000000")
        assert (missing.status_code, "not found" in missing.text) == (404, True)
        refused = await http.post("/unknown")
        assert (refused.status_code, "known are: thumbnail" in refused.text) == (422, True)
        assert (await http.get("/jobs/x")).status_code == 422

    serve(application(store_url), use)


def test_a_store_that_is_away_is_503() -> None:
    """With Retry-After."""

    async def use(http: httpx.AsyncClient) -> None:
        answer = await http.post("/images?name=x")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    serve(application("mysql://root@127.0.0.1:1/none", timeout=1), use)


@pytest.mark.slow
def test_a_commit_without_an_answer_is_503_with_what_it_may_have_made(mysql_server: DatabaseServer) -> None:
    """And without Retry-After, by which a client would enqueue the job twice."""
    if not mysql_server.private:
        pytest.skip("another's server need not listen here")
    name = mysql_server.new_database()
    store = open_store(StoreConfig(url=mysql_server.url(name)))
    store.migrate()
    store.run(lambda tx: handlers.seen(tx, "thumbnail", None, "node"))
    line = SilentCommit(mysql_server.url(name, tcp=True), [ALONE])

    async def use(http: httpx.AsyncClient) -> None:
        assert (await http.post("/images?name=x")).status_code == 200  # it is connected
        line.armed = True
        answer = await http.post("/images?name=x")
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, None)
        detail = answer.json()["detail"]
        (job_id,) = detail["ids"]
        assert detail["unknown"] is True
        assert "may have been made" in detail["message"]
        assert store.read(lambda tx: jobs.get(tx, parse_id(job_id)))["handler"] == "thumbnail"

    serve(application(line.url, timeout=3), use)
    line.close()
    store.close()
    mysql_server.drop_database(name)


def test_the_applications_own_lifespan_is_inside(store_url: str, store: Any) -> None:
    """It may use the client; what it yields is the application's state."""
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        seen.append(type(app.state.workerd).__name__)
        yield {"x": 1}
        seen.append("closed")

    async def use(http: httpx.AsyncClient) -> None:
        assert seen == ["AsyncClient"]

    serve(application(store_url, inner=own), use)
    assert seen == ["AsyncClient", "closed"]


def test_without_the_lifespan_the_dependency_says_so() -> None:
    """And not that an attribute is missing."""
    app = FastAPI()

    @app.get("/")
    async def index(jobs: Jobs) -> None:
        """Nothing."""

    async def use(http: httpx.AsyncClient) -> None:
        with pytest.raises(RuntimeError, match="lifespan"):
            await http.get("/")

    serve(app, use)
