"""`init` functions that fail."""

from __future__ import annotations

import os


def dies() -> None:
    os._exit(5)


def raises() -> None:
    raise RuntimeError("no database today")
