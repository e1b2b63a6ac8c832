"""`workerd demo`: the real daemon on an embedded store, at work on real input, and what came of it."""

from __future__ import annotations
