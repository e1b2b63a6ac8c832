"""What people and programs may do: one module per noun, called by client, command line and gateway.

Each function runs in a transaction of its caller's, `store.run(lambda tx: jobs.cancel(tx, actor, job_id))`.
One that changes something other than by enqueueing takes the `Actor`; look-ups return documents.
"""
