assert client.get_request(made.id).status == "completed"
