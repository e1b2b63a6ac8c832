"""FastAPI: an AsyncClient for the life of the application, as a dependency.

from workerd.contrib.fastapi import Jobs, lifespan

app = FastAPI(lifespan=lifespan("/etc/workerd"))

@app.post("/images")
async def upload(name: str, jobs: Jobs):
    return await jobs.enqueue("thumbnail", {"image": name})
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.requests import HTTPConnection

from workerd.async_client import AsyncClient
from workerd.client_arguments import Source
from workerd.errors import (
    CommitUnknown,
    Conflict,
    HandlerNotFound,
    InvalidValue,
    NotFound,
    StoreAway,
    TooManyWaiting,
)

_STATUSES: dict[type[Exception], int] = {
    InvalidValue: 422,
    HandlerNotFound: 422,
    NotFound: 404,
    Conflict: 409,
    TooManyWaiting: 429,
    StoreAway: 503,
}
"""What an error of the client is in HTTP, if the application does not handle it."""


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


def lifespan(source: Source = None, *, inner: Lifespan | None = None, **options: Any) -> Lifespan:
    """A lifespan that opens an AsyncClient and closes it at the end; `inner`: the application's own, inside.

    `source` and `options` are those of AsyncClient.
    """

    @asynccontextmanager
    async def with_client(app: FastAPI) -> AsyncIterator[Any]:
        async with AsyncClient(source, **options) as jobs:
            app.state.workerd = jobs
            if inner is None:
                yield None
            else:
                async with inner(app) as state:
                    yield state

    return with_client


async def client(connection: HTTPConnection) -> AsyncIterator[AsyncClient]:
    """The dependency: the application's AsyncClient. Its errors become answers: 404, 409, 422, 429, 503.

    A commit without an answer is 503 without Retry-After, for a repeat might do it twice: its detail is
    `{"message", "unknown": true, "ids"}` with the jobs and requests that exist if it has taken effect.
    """
    jobs = getattr(connection.app.state, "workerd", None)
    if not isinstance(jobs, AsyncClient):
        raise RuntimeError("no AsyncClient: make the application with lifespan=lifespan(…) of this module")
    try:
        yield jobs
    except CommitUnknown as error:
        raise HTTPException(503, _unknown(error)) from error
    except tuple(_STATUSES) as error:
        status = next(status for kind, status in _STATUSES.items() if isinstance(error, kind))
        headers = {"Retry-After": "1"} if status in (429, 503) else None
        raise HTTPException(status, str(error), headers) from error


def _unknown(error: CommitUnknown) -> dict[str, Any]:
    return {"message": f"{error.WARNING}.", "unknown": True, "ids": list(error.ids)}


Jobs = Annotated[AsyncClient, Depends(client)]
"""The type of a parameter that takes the client."""
