"""Complete small programs: `python -m examples` lists them, `python -m examples NAME` runs one."""
