"""Names in paths: one with a slash, such as `mail/daily`, is a single segment, `mail%2Fdaily`.

An ASGI server decodes the path as a whole, and a slash of a name can no longer be told from one that ends a
segment. So the scope's path stays percent-encoded here, in one form for the guard and the routes alike.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

_PLAIN = "-._~!$&'()*+,;=:@"
"""Characters of a segment that need no encoding beside letters and digits: RFC 3986, section 3.3."""


def normal_form(path: str) -> str:
    """The path of a request line with only those characters encoded that must be."""
    if "%" not in path:
        return path
    return "/".join(quote(unquote(segment), safe=_PLAIN) for segment in path.split("/"))


def value_of(segment: str) -> str:
    """The name that a segment stands for."""
    return unquote(segment) if "%" in segment else segment
