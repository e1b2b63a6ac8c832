"""The bearer tokens of `gateway.token_file`."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from pathlib import Path

FILE_CHECK_INTERVAL_S = 1.0


class Tokens:
    """The bearer tokens of `gateway.token_file`, one per line; read again after any change of the file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._checked_at = -FILE_CHECK_INTERVAL_S
        self._version: tuple[int, ...] = ()
        self._ids: dict[str, bytes] = {}

    @property
    def required(self) -> bool:
        """Whether tokens are configured."""
        return self._path is not None

    def identify(self, token: bytes) -> str:
        """The id of a valid token, from which it cannot be recovered; "" if it is not valid."""
        found = ""
        for token_id, known in self._current().items():
            # All are compared, and each in constant time: how long this takes tells nothing about a token.
            if hmac.compare_digest(known, token):
                found = token_id
        return found

    def has(self, token_id: str) -> bool:
        """Whether the token with this id is still valid."""
        return token_id in self._current()

    def _current(self) -> dict[str, bytes]:
        if self._path is None or time.monotonic() - self._checked_at < FILE_CHECK_INTERVAL_S:
            return self._ids
        self._checked_at = time.monotonic()
        try:
            version = _version(self._path.stat())
            if version != self._version:
                lines = self._path.read_bytes().splitlines()
                tokens = [line.strip() for line in lines if line.strip() and not line.startswith(b"#")]
                self._ids = {_id_of(token): token for token in tokens}
                self._version = version
        except OSError:
            self._ids, self._version = {}, ()  # without the file all are refused
        return self._ids


def _version(status: os.stat_result) -> tuple[int, ...]:
    """Differs after any change: editors, `cp -p` and `mv` each leave some of these as they were."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def _id_of(token: bytes) -> str:
    return hashlib.blake2b(token, key=b"workerd token", digest_size=16).hexdigest()
