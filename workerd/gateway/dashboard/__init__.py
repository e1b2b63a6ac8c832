"""The dashboard: HTML pages rendered on the server and updated by server-sent events."""

from __future__ import annotations
