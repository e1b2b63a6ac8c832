ID = client.submit("refund").id
request_id = client.submit("refund").id
