"""The route of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from workerd.gateway.events import Events, Listener
from workerd.gateway.path_prefix import prefix_of
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.roles import Access, Route, caller_of
from workerd.gateway.state import address_of, gateway_of

KEEPALIVE_INTERVAL_S = 15.0
"""A comment is sent after so long without an event: proxies keep the connection, dead clients are noticed."""
RECONNECT_MS = 2000
MAX_PAGE_LENGTH = 4000
MEDIA_TYPE = "text/event-stream"


class EventStream(Response):
    """Streams a listener's changed parts until the client disconnects or the node shuts down."""

    media_type = MEDIA_TYPE

    def __init__(self, events: Events, listener: Listener) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnected = asyncio.create_task(_disconnected(receive))
        sending = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait({disconnected, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._events.remove(self._listener)
            disconnected.cancel()
            sending.cancel()
            results = await asyncio.gather(disconnected, sending, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send(_chunk(b"retry: %d\n\n" % RECONNECT_MS))
        while not self._listener.ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEPALIVE_INTERVAL_S):
                    await self._listener.changed.wait()
            parts = self._listener.take()
            await send(_chunk(b"data: " + msgspec.json.encode(parts) + b"\n\n" if parts else b":\n\n"))
        await send(_chunk(b"event: end\ndata: {}\n\n", more=False))


def _chunk(data: bytes, more: bool = True) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def show_events(request: Request) -> Response:
    """The changes of one page; `view` is its path with its query."""
    page = request.query_params.get("view", "/")
    if len(page) > MAX_PAGE_LENGTH or not page.startswith("/"):
        raise HTTPProblem(422, "view: expected the path of a dashboard page, such as /ui/jobs?status=new.")
    if request.method == "HEAD":
        return Response(media_type=MEDIA_TYPE)
    events = gateway_of(request).events
    listener = events.add(page, caller_of(request), address_of(request), prefix_of(request.headers))
    return EventStream(events, listener)


ROUTES = [Route("/events", show_events, methods=["GET"], access=Access.LOOK_UP)]
