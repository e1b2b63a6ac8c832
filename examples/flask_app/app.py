"""The application: `flask --app app run` serves it."""

from __future__ import annotations

from typing import Any

from flask import Flask
from handlers import thumbnail

from workerd import Client
from workerd.errors import NotFound

app = Flask(__name__)
client = Client()


@app.post("/images/<name>")
def upload(name: str) -> tuple[dict[str, str], int]:
    """Enqueue a job for an image."""
    return {"job": thumbnail.enqueue(client, image=name).id}, 202


@app.get("/jobs/<job_id>")
def show(job_id: str) -> dict[str, Any]:
    """A job, once it has ended."""
    job = client.wait(job_id, timeout="20s")
    return {"status": job.status, "result": job.payload}


@app.errorhandler(NotFound)
def not_found(error: NotFound) -> tuple[dict[str, str], int]:
    """An unknown job is 404."""
    return {"error": str(error)}, 404
