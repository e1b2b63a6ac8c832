"""Idempotency-Key: a repeat of a POST answers what the first has made, and never makes it twice."""

from __future__ import annotations

import uuid

from starlette.requests import Request

from workerd.gateway.headers import headers_of
from workerd.gateway.problems import HTTPProblem
from workerd.gateway.state import token_id_of

NAMESPACE = uuid.UUID("6f0dbd0c-8a5c-5a3b-9b0e-0d6f0b9f3c11")
"""Of the ids that are derived from a key (RFC 9562, UUIDv5)."""
MAX_KEY_LENGTH = 255


class IdempotencyKey:
    """The key of one request, of which ids are derived; those of two tokens have nothing in common."""

    def __init__(self, token_id: str, kind: str, key: str) -> None:
        self._name = f"{token_id}\n{kind}\n{key}"

    @classmethod
    def of(cls, request: Request, kind: str) -> IdempotencyKey | None:
        """The key of the request, None without one; `kind`: what it makes. Raises HTTPProblem 422."""
        key = headers_of(request.scope).get("idempotency-key")
        if key is None:
            return None
        if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isprintable():
            raise HTTPProblem(422, f"Idempotency-Key: expected 1 to {MAX_KEY_LENGTH} printable characters.")
        return cls(token_id_of(request), kind, key)

    def id(self, number: int = 0) -> uuid.UUID:
        """The id of the job or request with this number in the body."""
        return uuid.uuid5(NAMESPACE, self._name if number == 0 else f"{self._name}\n{number}")
