"""Run a job and read the metrics."""

from __future__ import annotations

import time
import urllib.request

from workerd import Client

WANTED = ("shop_bytes_total 42.0", "workerd_attempts_total", "workerd_workers")

with Client() as client:
    client.wait(client.enqueue("work", {"size": 42}).id, timeout="20s")
end = time.monotonic() + 30
while True:
    with urllib.request.urlopen("http://127.0.0.1:8027/metrics", timeout=10) as answer:
        text = answer.read().decode()
    if all(words in text for words in WANTED) or time.monotonic() > end:
        break
    time.sleep(0.2)
print(*(line for line in text.splitlines() if line.startswith(WANTED)), sep="\n")
assert all(words in text for words in WANTED)
