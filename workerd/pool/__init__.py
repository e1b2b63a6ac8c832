"""A pool: one failure domain of handlers, with its own process and its own workers."""

from __future__ import annotations
