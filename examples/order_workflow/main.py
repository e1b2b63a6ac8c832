"""Submit one order, approve it, and wait for its end."""

from __future__ import annotations

import os
import time
from pathlib import Path

from workerd import Client

ACCOUNT = Path(os.environ["EXAMPLE_FOLDER"], "account")

with Client() as client:
    params = {"order": 7, "items": ["a", "b"], "mail": "ada@example.org"}
    order = client.submit("order", params).id
    while not any(job.name == "approve" for job in client.get_request(order).jobs):
        time.sleep(0.1)
    assert not ACCOUNT.exists()
    print("the order waits for an approval")
    client.signal(order, "approved", {"by": "anna"})
    request = client.wait_request(order, timeout="60s")
    for job in request.jobs:
        print(f"{job.name:8} {job.status:10} attempt {job.attempt}")
    account = ACCOUNT.read_text()
    mail = next(job for job in request.jobs if job.name == "mail")
    print("mail:", client.get(mail.id).result)
    print("account:", account.strip())
    assert (request.status, account.count("order 7")) == ("completed", 1)
