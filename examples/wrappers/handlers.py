"""The handlers."""

from __future__ import annotations

import os
import time
import urllib.request

from around import measured

from workerd import wrap


def fetch() -> dict[str, str]:
    """The proxies that a request would take."""
    return urllib.request.getproxies()


def _slow(seconds: float) -> str | None:
    time.sleep(seconds)
    return os.environ.get("HTTP_PROXY")


slow = wrap(_slow, measured)
"""The same in code: this one is measured twice."""
