from tests.docs.readers import failed_job

ID = failed_job(client, "thumbnail")
