"""Text that comes from user code, made fit for a row: valid UTF-8, without NUL, cut to size."""

from __future__ import annotations

import re

from workerd.outcome import ERROR_LIMIT, STACK_LIMIT

NOTE_LIMIT = 191
"""Characters of a progress note."""

_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_CUT = "\n… cut here …\n"


def clean(text: str) -> str:
    """The text with lone surrogates and NUL written as escapes; everything else is kept."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("\0", "\\x00")


def one_line(text: str, limit: int = ERROR_LIMIT) -> str:
    """The text on one line, at most `limit` bytes of UTF-8."""
    # What is far beyond the limit is cut first: an error may be as large as its author's memory.
    text = _BREAKS.sub(" ", clean(text[: limit * 4]).strip())
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - 3].decode("utf-8", "ignore") + "…"


def stack(text: str, limit: int = STACK_LIMIT) -> str:
    """The text in at most `limit` bytes of UTF-8; cut in the middle, as both ends of a stack tell most."""
    if len(text) > limit * 2:
        text = text[: limit // 2] + _CUT + text[-limit:]
    data = clean(text).encode()
    if len(data) <= limit:
        return data.decode()
    head = data[: limit // 4].decode("utf-8", "ignore")
    room = limit - limit // 4 - len(_CUT.encode())
    return head + _CUT + data[-room:].decode("utf-8", "ignore")


def decode(data: bytes) -> str:
    """Bytes of unknown origin as text; what is not UTF-8 is written as escapes."""
    return data.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
