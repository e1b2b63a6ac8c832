"""Submit one order and wait for its end."""

from __future__ import annotations

import os
from pathlib import Path

from workerd import Client

with Client() as client:
    params = {"order": 7, "items": ["a", "b"], "mail": "ada@example.org"}
    request = client.wait_request(client.submit("order", params).id, timeout="60s")
    for job in request.jobs:
        print(f"{job.handler:8} {job.status:10} attempt {job.attempt}")
    account = Path(os.environ["EXAMPLE_FOLDER"], "account").read_text()
    print("account:", account.strip())
    assert (request.status, account) == ("completed", "order 7\n")
