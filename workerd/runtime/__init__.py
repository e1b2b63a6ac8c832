"""Processes: event loop, channels, sockets, children, limits, cgroups. Knows no job."""

from __future__ import annotations
