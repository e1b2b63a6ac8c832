"""The client for asyncio: the methods of Client, awaitable, on a real daemon."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import HANDLERS, Daemon
from workerd import AsyncClient, Client, JobSpec
from workerd.errors import Conflict, NotFound, StoreAway

CONFIG = f"""
[handlers.add]
call = "{HANDLERS}:add"
[handlers.waits]
call = "{HANDLERS}:wait_for_file"
grace = "200ms"
[workflows.one]
steps = [{{ name = "only", jobs = ["add"] }}]
"""


@pytest.fixture
def daemon(tmp_path: Path, store_url: str, store: object) -> Iterator[Daemon]:
    with Daemon(tmp_path / "node", store_url, CONFIG) as daemon:
        yield daemon


def test_every_method_of_client_is_there() -> None:
    """With its parameters and its docstring; a new one needs a line in AsyncClient."""
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours = getattr(AsyncClient, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(method).parameters), name
        assert ours.__doc__
        assert inspect.iscoroutinefunction(ours) == (name != "wake")
    options = set(inspect.signature(Client).parameters)
    assert options == set(inspect.signature(AsyncClient).parameters)


def test_jobs_and_requests_by_asyncio(daemon: Daemon, tmp_path: Path) -> None:
    """Many at a time; more calls than connections wait for each other, and waits hold no thread."""

    async def main() -> None:
        async with AsyncClient(daemon.path, connections=2) as client:
            done = await asyncio.gather(*(client.enqueue("add", {"a": n}) for n in range(20)))
            jobs = await asyncio.gather(*(client.wait(one.id, timeout=20) for one in done))
            assert [job.result for job in jobs] == [n + 1 for n in range(20)]

            held = await client.enqueue("waits", {"path": str(tmp_path / "go")})
            waiting = [asyncio.create_task(client.wait(held.id)) for _ in range(8)]
            await asyncio.sleep(0)
            [many] = await client.enqueue_many([JobSpec(handler="add", vars={"a": 1})])
            assert (await client.wait(many.id, timeout=20)).result == 2
            with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
                await client.wait(held.id, timeout=0.01)
            (tmp_path / "go").touch()
            assert {job.status for job in await asyncio.gather(*waiting)} == {"completed"}
            with pytest.raises(Conflict):
                await client.cancel(held.id)
            with pytest.raises(NotFound):
                await client.get("00000000-0000-0000-0000-000000000000")

            request = await client.submit("one", {"a": 5})
            assert (await client.wait_request(request.id, timeout=20)).complete
            assert (await client.cancel_many(handler="add", limit=1)).done == 0
            await client.pause("add", "for a test")
            assert await client.resume("add")
            client.wake()

    asyncio.run(main())


def test_it_can_be_used_after_a_fork(store_url: str, store: object) -> None:
    """As the servers of an application fork their workers."""
    client = AsyncClient(store_url)
    with pytest.raises(NotFound):
        asyncio.run(client.get("00000000-0000-0000-0000-000000000000"))

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.run(client.get("00000000-0000-0000-0000-000000000000"))
        except NotFound:
            status = 7
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    asyncio.run(client.close())


def test_a_store_that_is_away_raises_where_it_is_awaited() -> None:
    """As in Client."""

    async def main() -> None:
        async with AsyncClient("mysql://root@127.0.0.1:1/none", timeout=1) as client:
            with pytest.raises(StoreAway):
                await client.get("00000000-0000-0000-0000-000000000000")

    asyncio.run(main())
