"""Times as the store keeps them: whole microseconds since the epoch, in UTC.

In rows, times have the form `YYYY-MM-DD HH:MM:SS.ffffff` in every engine. Everywhere else they are `int`,
because they are only compared, added and sent; the store converts them.
"""

from __future__ import annotations

import re
import time
from datetime import date
from functools import lru_cache

from workerd.errors import InvalidValue

SECOND = 1_000_000
LATEST = 253_402_300_799_999_999  # 9999-12-31 23:59:59.999999, the maximum of DATETIME


def now_us() -> int:
    """The wall clock of this machine, microseconds; only for logs, and for SQLite, whose clock it is."""
    return time.time_ns() // 1000


def after(start_us: int, from_ns: int, to_ns: int) -> int:
    """The store time at monotonic `to_ns`, from the store time `start_us` at monotonic `from_ns` (law 8)."""
    return start_us + max(0, to_ns - from_ns) // 1000


@lru_cache(maxsize=512)
def _second_text(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))


def to_text(us: int) -> str:
    """A store time as SQL text, clamped to the range of DATETIME."""
    second, micro = divmod(min(max(us, 0), LATEST), SECOND)
    return f"{_second_text(second)}.{micro:06d}"


_DAY_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)", re.ASCII)
_EPOCH = date(1970, 1, 1).toordinal()


@lru_cache(maxsize=512)
def _second_value(text: str) -> int:
    # time.strptime takes three times as long and loads half a megabyte of modules.
    match = _DAY_TIME.fullmatch(text)
    if match is None:
        raise InvalidValue(f"expected 'YYYY-MM-DD HH:MM:SS', got {text!r}")
    year, month, day, hour, minute, second = map(int, match.groups())
    if hour > 23 or minute > 59 or second > 60:  # 60: a leap second
        raise InvalidValue(f"{text!r} names an hour that does not exist")
    try:
        days = date(year, month, day).toordinal() - _EPOCH
    except ValueError:
        raise InvalidValue(f"{text!r} names a day that does not exist") from None
    return days * 86_400 + hour * 3600 + minute * 60 + second


def from_text(text: str | bytes) -> int:
    """Store time from SQL text with zero to six digits after the point. Raises InvalidValue."""
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    micro = text[20:]
    if len(text) > 19 and (text[19] != "." or not micro.isdecimal() or len(micro) > 6):
        raise InvalidValue(f"expected 'YYYY-MM-DD HH:MM:SS.ffffff', got {text!r}")
    return _second_value(text[:19]) * SECOND + int(micro.ljust(6, "0") if micro else 0)


def to_rfc3339(us: int) -> str:
    """A store time as RFC 3339 with six digits and Z, as in JSON documents."""
    text = to_text(us)
    return f"{text[:10]}T{text[11:]}Z"


_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)


def from_rfc3339(text: str) -> int:
    """Store time from RFC 3339 text; digits beyond microseconds are dropped. Raises InvalidValue.

    A time without an offset is refused as ambiguous.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise InvalidValue(
            f"expected a time with its offset, such as 2026-01-31T12:00:00Z or "
            f"2026-01-31T13:00:00+01:00, got {text!r}"
        )
    day, day_time, fraction, _, sign, hours, minutes = match.groups()
    try:
        seconds = _second_value(f"{day} {day_time}")
    except InvalidValue:
        raise InvalidValue(f"{text!r} names a day or an hour that does not exist") from None
    if sign is not None:
        if int(hours) > 23 or int(minutes) > 59:
            raise InvalidValue(f"{text!r} has an offset that does not exist")
        seconds -= (int(hours) * 3600 + int(minutes) * 60) * (1 if sign == "+" else -1)
    us = seconds * SECOND + int((fraction or "0").ljust(6, "0")[:6])
    if not 0 <= us <= LATEST:
        raise InvalidValue(f"{text!r} is outside of the years 1970 to 9999")
    return us
