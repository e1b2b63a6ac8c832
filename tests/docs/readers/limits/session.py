from tests.support.eventually import eventually

running = [client.enqueue("refund", {"tenant": tenant}) for tenant in "abx"]
for job in running:
    eventually(lambda job=job: client.get(job.id).status == "inprogress")
ID = client.enqueue("refund", {"tenant": "x"}).id
client.enqueue("refund", {"tenant": "x"})
