"""What people and programs may do: one module per noun, called by client, command line and gateway.

Each function runs in the caller's transaction, as in `store.run(lambda tx: jobs.cancel(tx, actor, job_id))`.
Look-ups return documents; what changes existing rows takes the `Actor`.
"""
