"""Text for rows, logs and people: cleaned, cut, escaped; durations, sizes and plurals in words."""

from __future__ import annotations

import re
import shlex
import signal

ERROR_LIMIT = 1024
"""Bytes of UTF-8 in `error`."""
STACK_LIMIT = 64 * 1024
"""Bytes of UTF-8 in `stack`."""
NOTE_LIMIT = 191
"""Characters of a progress note."""

_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_CUT = "\n… cut here …\n"


def clean(text: str) -> str:
    """The text with lone surrogates and NUL escaped, as the store needs it."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("\0", "\\x00")


def one_line(text: str, limit: int = ERROR_LIMIT) -> str:
    """The text on one line, at most `limit` bytes of UTF-8."""
    # Cut before cleaning: an error may be gigabytes long.
    text = _BREAKS.sub(" ", clean(text[: limit * 4]).strip())
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - 3].decode("utf-8", "ignore") + "…"


def stack(text: str, limit: int = STACK_LIMIT) -> str:
    """The text in at most `limit` bytes of UTF-8; cut in the middle, as both ends of a stack matter most."""
    if len(text) > limit * 2:
        text = text[: limit // 2] + _CUT + text[-limit:]
    data = clean(text).encode()
    if len(data) <= limit:
        return data.decode()
    head = data[: limit // 4].decode("utf-8", "ignore")
    room = limit - limit // 4 - len(_CUT.encode())
    return head + _CUT + data[-room:].decode("utf-8", "ignore")


def decode(data: bytes) -> str:
    """Bytes of unknown origin as text; invalid UTF-8 is escaped."""
    return data.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


# C0 and C1 controls, DEL, lone surrogates, and characters that change the direction of text.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_LINE_BREAKS = re.compile("[\t\n]")


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def harmless(text: object) -> str:
    """Text of several lines, safe for a terminal: control characters but tab and newline are escaped."""
    return _UNSAFE.sub(_escaped, str(text))


def line(text: object) -> str:
    """Text as one line, safe for a terminal or a log: every control character is escaped."""
    if isinstance(text, str) and text.isprintable():
        return text
    return _LINE_BREAKS.sub(_escaped, harmless(text))


def word(text: object) -> str:
    """Text as one word of a command that a sentence recommends: quoted for the shell where that must be."""
    return shlex.quote(line(text))


def field_value(value: object) -> str:
    """The value of a field in a log for people, `name=value`: quoted where it would not end at a space."""
    shown = str(value)
    return repr(shown) if not shown or any(c.isspace() or c == "=" for c in shown) else shown


def seconds_text(seconds: float | None) -> str | None:
    """A duration for people: `0.4 ms`, `250 ms`, `12.3 s`, `5 min 02 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return None
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.0995 else f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size_text(size: float) -> str:
    """A size for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 job`, `2 jobs`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 40` where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def exit_text(status: int) -> str:
    """How a process ended: `SIGSEGV` for status -11, `exit status 3` for 3."""
    return signal_name(-status) if status < 0 else f"exit status {status}"


def death_text(status: int) -> str:
    """The same as a predicate: `was killed by SIGSEGV`, `ended with exit status 3`."""
    return f"{'was killed by' if status < 0 else 'ended with'} {exit_text(status)}"
