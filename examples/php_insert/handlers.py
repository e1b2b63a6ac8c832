"""What the jobs run."""

from __future__ import annotations


def welcome(name: str) -> str:
    """Greet."""
    return f"Welcome, {name}!"
