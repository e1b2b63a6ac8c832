"""`workerd demo`: a real daemon on an embedded store runs real jobs and shows how each of them ended."""

from __future__ import annotations
