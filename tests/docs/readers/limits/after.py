import time

job = client.enqueue("charge", {"tenant": "y", "amount": 1})
while client.get(job.id).status != "scheduled":
    time.sleep(0.05)
