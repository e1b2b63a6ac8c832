found = client.wait(jobs.enqueue("charge", {"order": 7}).id, timeout="30s")
assert (found.status, found.result) == ("completed", "paid")
assert found.meta["traceparent"].startswith("00-")
