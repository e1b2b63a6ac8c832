"""The application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from handlers import thumbnail

from workerd.contrib.fastapi import Jobs, lifespan

app = FastAPI(lifespan=lifespan())


@app.post("/images", status_code=202)
async def upload(name: str, jobs: Jobs) -> dict[str, str]:
    """Enqueue a job for an image."""
    return {"job": (await thumbnail.enqueue(jobs, image=name)).id}


@app.get("/jobs/{job_id}")
async def show(job_id: str, jobs: Jobs) -> dict[str, Any]:
    """A job, once it has ended, or after 20 seconds as it is."""
    job = await jobs.wait(job_id, timeout="20s")
    return {"status": job.status, "result": job.payload}
