"""Handlers of the example image."""

import time


def greet(name: str) -> str:
    """A short job."""
    return f"Hello, {name}!"


def count(seconds: int) -> int:
    """A job that takes its time."""
    for _ in range(seconds):
        time.sleep(1)
    return seconds
