"""A pool: one failure domain of handlers, with a process and workers of its own."""
