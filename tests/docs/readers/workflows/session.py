request = client.wait_request(client.submit("delete_user", {"id": 8}).id)
REQUEST = request.id
JOB = next(job.id for job in request.jobs if job.status == "failure")
