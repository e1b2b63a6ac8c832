"""The dashboard below a path of a proxy, which strips the path and names it in X-Forwarded-Prefix."""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_PREFIX_LENGTH = 200
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
# Text and values are escaped, so that a quote after one of these names is an attribute's.
_LINK = re.compile(r'( (?:href|src|action|data-post|data-send|data-show|data-to|data-all)=")/')


def prefix_of(headers: Mapping[str, str]) -> str:
    """The path below which the proxy serves the gateway, without a slash at its end; "" without one."""
    given = headers.get("x-forwarded-prefix", "").partition(",")[0].strip().rstrip("/")
    if len(given) > MAX_PREFIX_LENGTH or not _PREFIX.fullmatch(given) or {".", ".."} & set(given.split("/")):
        return ""
    return given


def below(prefix: str, html: str) -> str:
    """The HTML with every link of the gateway below the prefix."""
    return _LINK.sub(rf"\g<1>{prefix}/", html) if prefix else html
