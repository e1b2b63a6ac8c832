ID = client.enqueue("thumbnail").id
