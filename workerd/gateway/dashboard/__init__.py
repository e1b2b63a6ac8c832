"""The dashboard: pages rendered here, shown by any browser, kept fresh by server-sent events."""

from __future__ import annotations
