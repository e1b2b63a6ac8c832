"""Call the application as its users do."""

from __future__ import annotations

import asyncio

import httpx
from app import app


async def main() -> None:
    """Upload ten images and wait for their thumbnails."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop", timeout=30) as http,
    ):
        uploads = await asyncio.gather(*(http.post(f"/images?name=cat{n}.png") for n in range(10)))
        jobs = [upload.json()["job"] for upload in uploads]
        for answer in await asyncio.gather(*(http.get(f"/jobs/{job}") for job in jobs)):
            print(answer.json())
            assert answer.json()["status"] == "completed"


asyncio.run(main())
