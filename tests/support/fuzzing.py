"""Bytes for sockets that expect frames: random ones, and messages that were changed a little."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

_ALPHABET = [
    b"\x91",
    b"\x81",
    b"\xc1",
    b"\xff",
    b"\xa3abc",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xc0",
]


def fuzz_frame(dice: random.Random, known: Sequence[bytes]) -> bytes:
    """A frame: mostly a mutated message; sometimes noise, deep nesting, or a length that is a lie."""
    kind = dice.randrange(6)
    if kind == 0:
        body = dice.randbytes(dice.randrange(64))
    elif kind == 1:
        body = dice.choice((b"\x91", b"\x81\xa1a", b"[", b'{"a":')) * dice.choice((10, 2000, 60_000))
    else:
        body = _mutated(dice, dice.choice(known))
    length = len(body)
    if dice.random() < 0.1:
        length = dice.choice((-1, -(2**31), 2**31 - 1, 0, length + 1, max(0, length - 1)))
    return struct.pack("!i", length) + body


def _mutated(dice: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0:
                data[at:at] = dice.choice(_ALPHABET)
            case 1:
                del data[at : at + dice.randrange(1, 4)]
            case 2 if at < len(data):
                data[at] = dice.randrange(256)
            case 3:
                data[at : at + 1] = dice.choice(_ALPHABET)
    return bytes(data)
