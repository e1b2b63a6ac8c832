import time

job = client.enqueue("pages")
while (seen := client.get(job.id)).status != "scheduled" or seen.attempt == 1:
    time.sleep(0.05)
assert seen.progress is None or seen.progress, seen
