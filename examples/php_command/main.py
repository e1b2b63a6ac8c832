"""Enqueue two reports, one of which is tried again."""

from __future__ import annotations

from workerd import Client

with Client() as client:
    for month in ("2026-05", "busy"):
        job = client.wait(client.enqueue("report", {"month": month, "rows": [1, 2, 39]}).id, timeout="30s")
        print(job.result)
        assert job.result["sum"] == 42
    assert len(job.attempts) == 2
