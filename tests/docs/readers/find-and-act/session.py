from tests.docs.readers import failed_job

WAITING = client.enqueue("mail", {"to": "ann@example", "cc": "bob"}, delay="1h").id
FAILED = failed_job(client, "mail", to="ann@example")
FINGERPRINT = client.errors()[0].fingerprint
