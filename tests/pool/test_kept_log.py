"""A log within its limit: the beginning, the newest, and what was left out said."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.pool.kept_log import KeptLog
from workerd.pool.worker_messages import LogRecord

LIMIT = 1024
NOTE = 60
"""Bytes of the line about the gap."""


def kept(*pieces: bytes, limit: int = LIMIT) -> KeptLog:
    log = KeptLog(limit)
    for piece in pieces:
        log.add(piece)
    return log


def lines(first: int, last: int) -> bytes:
    return b"".join(b"line %06d\n" % n for n in range(first, last))


def test_a_short_log_is_kept_whole() -> None:
    assert kept(b"one\ntw", b"o\n", "ü\n".encode()).text() == ("one\ntwo\nü\n", 0)
    assert KeptLog(LIMIT).text() == ("", 0)


def test_a_long_log_keeps_its_beginning_and_its_end() -> None:
    """Whole lines of both; the line between them says how much is missing."""
    written = lines(0, 10_000)
    text, dropped = kept(*(written[n : n + 700] for n in range(0, len(written), 700))).text()
    head, _, tail = text.partition("… ")
    assert head == lines(0, LIMIT // 16 // 12).decode()
    gap, _, tail = tail.partition("\n")
    assert gap == f"{dropped:,} bytes are left out here …"
    assert tail.encode() == lines(10_000 - len(tail) // 12, 10_000)
    assert len(head) + len(tail) + dropped == len(written)
    assert len(text.encode()) <= LIMIT + NOTE


def test_one_line_without_end() -> None:
    """Cut in the middle of it, as there is no other place."""
    text, dropped = kept(b"a" * 5000 + b"z" * 5000).text()
    assert text.startswith("a" * (LIMIT // 16))
    assert text.endswith("z" * 100)
    assert dropped == 10_000 - LIMIT


def test_what_is_no_text_is_made_visible() -> None:
    text, _ = kept(b"\xff\x00\x1b[31m red\r\nnext\rover\n").text()
    assert text == "\\xff\\x00\\x1b[31m red\nnext\\rover\n"


def test_records_are_lines_of_their_own() -> None:
    log = kept(b"no newline yet")
    record = LogRecord(
        level="warning", event="slow image", fields={"width": 200, "name": "a b"}, exception="T\n"
    )
    log.add(msgspec.json.encode(record), is_record=True)
    log.add(b"imitated", is_record=True)
    log.add(b"after\n")
    assert log.text()[0] == "no newline yet\nwarning: slow image  width=200 name='a b'\nT\nimitated\nafter\n"


@given(st.lists(st.binary(max_size=300), max_size=60), st.integers(1024, 4096))
def test_it_is_bounded_and_counts_what_it_dropped(pieces: list[bytes], limit: int) -> None:
    text, dropped = kept(*pieces, limit=limit).text()
    assert len(text.encode()) <= limit + NOTE
    assert (dropped > 0) == (" are left out here …\n" in text)


@given(st.lists(st.binary(max_size=300), max_size=40), st.data())
def test_parts_make_the_whole(pieces: list[bytes], data: st.DataObject) -> None:
    """Followed from part to part, nothing is lost or shown twice, as long as it is in memory."""
    log, start, shown = KeptLog(1 << 20), 0, ""
    for piece in pieces:
        log.add(piece.replace(b"\r", b""))
        if data.draw(st.booleans()):
            part = log.since(start, ended=False)
            shown, start = shown + part.text, part.until
            assert part.skipped == 0
    assert shown + log.since(start, ended=True).text == log.text()[0]


def test_a_follower_that_is_too_slow_is_told() -> None:
    log = kept(lines(0, 10))
    start = log.since(0, ended=False).until
    log.add(lines(10, 10_000))
    part = log.since(start, ended=False)
    assert part.skipped > 0
    assert part.until == len(lines(0, 10_000))
    assert part.text.encode().endswith(lines(9_990, 10_000))


@pytest.mark.parametrize("size", [1, 100, 65536])
def test_a_gigabyte_takes_no_memory(size: int) -> None:
    """Whatever the size of the writes: what is held is bounded by the limit."""
    log = KeptLog(64 * 1024)
    piece = b"x" * (size - 1) + b"\n"
    for _ in range(min(300_000, 40_000_000 // size)):
        log.add(piece)
    held = sum(len(one.data) for one in log._pieces())
    assert held <= 64 * 1024 + 2 * max(size, 4096)
    assert len(list(log._pieces())) < 100
