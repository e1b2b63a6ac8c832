"""The lines of `gateway.token_file`: who may do what over HTTP, and with which token."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from workerd.config.model import Config
from workerd.errors import ConfigError, InvalidValue

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
EXPECTED = "expected NAME ROLE TOKEN, or a token alone"


class Role(StrEnum):
    """What the owner of a token is to the gateway."""

    PRODUCER = "producer"  # enqueues, and looks up what it knows the id of
    VIEWER = "viewer"  # reads all but the audit
    OPERATOR = "operator"  # does everything


class Token(NamedTuple):
    """One token: whose it is, and the role of its owner. `id`: see `id_of`."""

    name: str
    role: Role
    secret: bytes
    id: str


def id_of(secret: bytes) -> str:
    """The id of a token, from which it cannot be recovered."""
    return hashlib.blake2b(secret, key=b"workerd token", digest_size=16).hexdigest()


def parse(content: bytes) -> list[Token]:
    """The tokens of a file, a line each; empty lines and those that begin with `#` are skipped.

    A token alone is that of an operator `token-N`, N the number of its line. Raises InvalidValue for the
    first wrong line, without what stands in it.
    """
    tokens: dict[str, tuple[int, Token]] = {}
    for number, line in enumerate(content.splitlines(), 1):
        words = line.split()
        if not words or line.startswith(b"#"):
            continue
        try:
            token = _token(number, words)
        except InvalidValue as error:
            raise InvalidValue(f"line {number}: {error}") from None
        if token.id in tokens:
            raise InvalidValue(f"line {number}: its token stands in line {tokens[token.id][0]} too")
        tokens[token.id] = number, token
    return [token for _, token in tokens.values()]


def _token(number: int, words: list[bytes]) -> Token:
    match words:
        case [secret]:
            return Token(f"token-{number}", Role.OPERATOR, secret, id_of(secret))
        case [name, role, secret]:
            text = name.decode("utf-8", "replace")
            if not _NAME.fullmatch(text):
                raise InvalidValue(f"{EXPECTED}; a NAME is up to 100 letters, digits and any of . _ @ + -")
            if role not in [known.encode() for known in Role]:
                raise InvalidValue(f"{EXPECTED}; a ROLE is one of {', '.join(Role)}")
            return Token(text, Role(role.decode()), secret, id_of(secret))
        case _:
            raise InvalidValue(f"{EXPECTED}, got {len(words)} words")


def check(config: Config) -> None:
    """Raises ConfigError if the token file can be read and is wrong."""
    if not config.gateway.token_file or not config.gateway.listen:
        return
    try:
        content = Path(config.gateway.token_file).read_bytes()
    except OSError:
        return  # the daemon's user may be able to read it
    try:
        parse(content)
    except InvalidValue as error:
        raise ConfigError([f"gateway.token_file: {config.gateway.token_file}, {error}."]) from None
