from tests.docs.readers import failed_job

failed_job(client, "charge")
failed_job(client, "thumbnail", image=7)
FINGERPRINT = client.errors()[0].fingerprint
