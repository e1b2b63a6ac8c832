"""Records in an output pipe: told apart from text, put together from their frames, bounded."""

from __future__ import annotations

import os
import random

from workerd.runtime.log_frames import MAX_OPEN_RECORDS, MAX_RECORD_BYTES, FrameReader, FrameWriter


def frames_of(*records: bytes) -> bytes:
    reading, writing = os.pipe()
    writer = FrameWriter(writing)
    for record in records:
        writer.write(record)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()


def read(reader: FrameReader, *chunks: bytes) -> tuple[bytes, list[bytes]]:
    """The text and the records in these chunks."""
    parts = [part for chunk in chunks for part in reader.split(chunk)]
    text = b"".join(data for data, is_record in parts if not is_record)
    return text + reader.flush(), [data for data, is_record in parts if is_record]


def test_text_and_records_are_separated_in_any_chunks() -> None:
    """Text around a record is as if the record were not there."""
    records = [b"{}", b"x" * 10_000, b"y" * 30_000]
    data = b"one, " + frames_of(*records) + b"two\n" + frames_of(b"last") + b"\x1e three"
    dice = random.Random(1)
    for _ in range(50):
        cuts = sorted(dice.sample(range(len(data)), 20))
        chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        reader = FrameReader()
        assert read(reader, *chunks) == (b"one, two\n\x1e three", [*records, b"last"])
        assert reader.dropped == 0


def test_any_bytes_are_read_within_bounds() -> None:
    """Nothing that a handler prints raises, or is kept beyond the longest record."""
    dice = random.Random(2)
    alphabet = [b"\x1e", b"\x1eworkerd ", b" 1 ", b" 0 ", b"\n", b"1.1", b"\xff" * 50, b"a" * 3000]
    for _ in range(300):
        reader = FrameReader()
        data = b"".join(dice.choices(alphabet, k=200))
        text, records = read(reader, data)
        assert len(text) + sum(map(len, records)) + reader.dropped <= len(data)


def test_unfinished_records_are_bounded_and_counted() -> None:
    """A writer that dies between two frames leaves a part, as does one that never ends."""
    reader = FrameReader()
    parts = b"".join(b"\x1eworkerd %d.1 1 abc\n" % pid for pid in range(MAX_OPEN_RECORDS + 2))
    assert read(reader, parts) == (b"", [])
    assert reader.dropped == 3 * (MAX_OPEN_RECORDS + 2)
    reader = FrameReader()
    endless = (b"\x1eworkerd 1.1 1 " + b"x" * 4000 + b"\n") * (MAX_RECORD_BYTES // 4000 + 1)
    assert read(reader, endless) == (b"", [])
    assert reader.dropped > MAX_RECORD_BYTES
