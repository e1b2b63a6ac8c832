ID = client.enqueue("thumbnail", {"watermark": "ours"}).id
