ID = client.enqueue("charge", {"card": {"number": "4111"}}).id
