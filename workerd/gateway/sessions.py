"""Sessions of browsers, and the pace of login attempts; both live as long as the gateway's process."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from workerd.config.token_file import Token
from workerd.gateway.path_prefix import prefix_of
from workerd.gateway.tokens import Tokens

SESSION_LIFE_S = 12 * 3600
MAX_SESSIONS = 1000
"""Above it the oldest one ends."""

FREE_FAILURES = 3
"""Failed logins of an address before it has to wait."""
MAX_LOGIN_WAIT_S = 60.0
FAILURES_FORGOTTEN_AFTER_S = 15 * 60.0
MAX_TRACKED_ADDRESSES = 10_000


@dataclass(frozen=True)
class Cookie:
    """The session cookie of a request: its name, and whether it is sent over TLS only.

    Browsers send the cookies of a host to all its ports, so that the name contains the port and the proxy's
    path: two nodes on one host do not log each other's users out.
    """

    name: str
    secure: bool

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Cookie:
        """The cookie that the gateway sets and reads for requests with these headers."""
        port = re.search(r":([0-9]{1,5})$", headers.get("host", ""))
        place = re.sub(r"[^A-Za-z0-9]", "_", prefix_of(headers))
        if headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower() == "https":
            # Browsers accept `__Host-` only over TLS, for this host alone and all its paths.
            return cls(f"__Host-workerd_{port[1] if port else 443}{place}", True)
        return cls(f"workerd_session_{port[1] if port else 80}{place}", False)

    def value(self, headers: Mapping[str, str]) -> str:
        """The value that the request carries, "" if none."""
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.name)
        except CookieError:
            return ""
        return morsel.value if morsel is not None else ""


class Sessions:
    """Random session ids, each for the token that it was exchanged for, until it expires or is ended."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._sessions: dict[bytes, tuple[str, float]] = {}

    def start(self, token_id: str) -> str:
        """A new session; returns the value of its cookie."""
        now = time.monotonic()
        # In the order of their expiry, for all live equally long.
        for key, (_, expires_at) in list(self._sessions.items()):
            if expires_at > now and len(self._sessions) < MAX_SESSIONS:
                break
            del self._sessions[key]
        value = secrets.token_urlsafe(32)
        self._sessions[_key(value)] = token_id, now + SESSION_LIFE_S
        return value

    def token(self, value: str) -> Token | None:
        """The session's token; None for an unknown or expired session, or a token no longer valid."""
        token_id, expires_at = self._sessions.get(_key(value), ("", 0.0))
        return self._tokens.find(token_id) if expires_at > time.monotonic() else None

    def end(self, value: str) -> None:
        """End a session, if there is one."""
        self._sessions.pop(_key(value), None)


def _key(value: str) -> bytes:
    # A lookup by digest takes equally long whatever part of a value was guessed.
    return hashlib.blake2b(value.encode("utf-8", "replace"), digest_size=32).digest()


class LoginThrottle:
    """Failed logins by address: each one after the first few doubles the wait before the next attempt."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}

    def wait_s(self, address: str) -> float:
        """Seconds until this address may try again, 0 if it may now."""
        count, last = self._failures.get(address, (0, 0.0))
        if count < FREE_FAILURES:
            return 0.0
        wait: float = min(MAX_LOGIN_WAIT_S, 2.0 ** min(count - FREE_FAILURES, 10))
        return max(0.0, last + wait - time.monotonic())

    def failed(self, address: str) -> int:
        """Count a failed login; returns how many the address has had."""
        now = time.monotonic()
        count, last = self._failures.pop(address, (0, 0.0))
        if now - last > FAILURES_FORGOTTEN_AFTER_S:
            count = 0
        while len(self._failures) >= MAX_TRACKED_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        self._failures[address] = count + 1, now
        return count + 1

    def succeeded(self, address: str) -> None:
        """Forget the failures of an address."""
        self._failures.pop(address, None)
