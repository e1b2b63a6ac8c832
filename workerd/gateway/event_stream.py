"""The route of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from workerd.gateway.events import Events, Listener
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import state

SILENCE = 15.0
"""Seconds after which a comment is sent, so that proxies keep the connection and the dead are found."""
PATH_LIMIT = 2000


class EventStream(Response):
    """Sends a listener its news until it goes away or the node ends."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, listener: Listener) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        going = asyncio.create_task(_gone(receive))
        sending = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait({going, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._events.remove(self._listener)
            going.cancel()
            sending.cancel()
            results = await asyncio.gather(going, sending, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"retry: 2000\n\n", "more_body": True})
        while not self._listener.ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SILENCE):
                    await self._listener.fresh.wait()
            news = self._listener.take()
            data = b"data: " + msgspec.json.encode(news) + b"\n\n" if news else b":\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"event: end\ndata: {}\n\n", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def events(request: Request) -> Response:
    """The news of one page, `view`: its path with its query."""
    view = request.query_params.get("view", "/")
    if len(view) > PATH_LIMIT or not view.startswith("/"):
        raise HTTPProblem(
            422, "view: expected the path of a page of the dashboard, such as /ui/jobs?status=new."
        )
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    hub = state(request).events
    return EventStream(hub, hub.add(view))


ROUTES = [Route("/events", events, methods=["GET"])]
