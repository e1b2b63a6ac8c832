"""The bearer tokens of `gateway.token_file`, as they are now."""

from __future__ import annotations

import hmac
import os
import time
from pathlib import Path

from workerd import log
from workerd.config.token_file import Token, parse
from workerd.errors import InvalidValue

FILE_CHECK_INTERVAL_S = 1.0

_log = log.get_logger("gateway")


class Tokens:
    """The tokens of a file; read again after any change of it. If that is wrong, the former ones stay."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._checked_at = -FILE_CHECK_INTERVAL_S
        self._version: tuple[int, ...] = ()
        self._tokens: dict[str, Token] = {}
        self._is_missing = False
        self._current()  # what is wrong with the file is logged now, not at the first request

    @property
    def required(self) -> bool:
        """Whether tokens are configured."""
        return self._path is not None

    def identify(self, secret: bytes) -> Token | None:
        """The token, None if it is not valid."""
        found = None
        for token in self._current().values():
            # All are compared, and each in constant time: how long this takes tells nothing about a token.
            if hmac.compare_digest(token.secret, secret):
                found = token
        return found

    def find(self, token_id: str) -> Token | None:
        """The token with this id, None if it is no longer valid."""
        return self._current().get(token_id)

    def _current(self) -> dict[str, Token]:
        if self._path is None or time.monotonic() - self._checked_at < FILE_CHECK_INTERVAL_S:
            return self._tokens
        self._checked_at = time.monotonic()
        try:
            version = _version(self._path.stat())
            if version != self._version:
                self._version = version
                self._tokens = {token.id: token for token in parse(self._path.read_bytes())}
            self._is_missing = False
        except InvalidValue as error:
            _log.error("token_file.refused", file=str(self._path), error=str(error))
        except OSError as error:
            self._tokens, self._version = {}, ()  # without the file all are refused
            if not self._is_missing:
                self._is_missing = True
                _log.error("token_file.unreadable", file=str(self._path), error=error.strerror or str(error))
        return self._tokens


def _version(status: os.stat_result) -> tuple[int, ...]:
    """Differs after any change: editors, `cp -p` and `mv` each leave some of these as they were."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev
