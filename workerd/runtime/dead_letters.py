"""The file of outcomes that the store refuses in any form: appended by the ingester, retried by a command."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from workerd.job import AttemptRef, id_text
from workerd.outcome import Outcome

MAX_FILE_BYTES = 64 * 1024 * 1024

_FIELDS = {field.name: field.type for field in msgspec.structs.fields(Outcome)}


class _Document(msgspec.Struct):
    """A line, as far as it is read."""

    node_id: str
    why: str
    outcome: dict[str, Any]


class DeadLetter(NamedTuple):
    """An outcome that names the incarnation that owned the attempt, and why it was set aside."""

    outcome: Outcome
    why: str

    @property
    def ref(self) -> AttemptRef:
        return self.outcome.ref


class DeadLetterFile:
    """One JSON document a line, in the order in which they were set aside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._taken = path.with_suffix(".retrying")
        self._known_of: tuple[int, ...] = ()
        self._known: frozenset[AttemptRef] = frozenset()

    def append(self, letters: Sequence[DeadLetter]) -> bool:
        """Write and sync these; false if that failed or the file is full."""
        lines = b"".join([_encoded(letter) + b"\n" for letter in letters])
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked(os.O_RDWR | os.O_CREAT | os.O_APPEND) as fd:
                return _append(fd, lines)
        except OSError:
            return False

    def refs(self) -> frozenset[AttemptRef]:
        """The attempts that were set aside; the files are read again only when they have changed."""
        found = (*_identity(self._taken), *_identity(self.path))
        if found != self._known_of:
            self._known_of = found
            with contextlib.suppress(OSError):
                self._known = frozenset(letter.ref for letter in self.read())
        return self._known

    def read(self) -> Iterator[DeadLetter]:
        """All of them, oldest first, without lines that cannot be read. Raises OSError."""
        for path in (self._taken, self.path):
            yield from filter(None, map(_decoded, _lines(path)))

    def find(self, ref: AttemptRef) -> DeadLetter | None:
        """That of an attempt, None if there is none. Raises OSError."""
        return next((letter for letter in self.read() if letter.ref == ref), None)

    def take(self) -> list[DeadLetter]:
        """All of them; the ingester goes on in a new file. They stay in `refs` until `done`.

        Lines that cannot be read are kept in a file of their own. Raises OSError.
        """
        if not self._taken.exists():
            with contextlib.suppress(FileNotFoundError), self._locked(os.O_RDWR):
                os.rename(self.path, self._taken)
        letters = []
        for line in _lines(self._taken):
            letter = _decoded(line)
            if letter is not None:
                letters.append(letter)
                continue
            with self.path.with_suffix(".damaged").open("ab") as damaged:
                damaged.write(line + b"\n")
        return letters

    def done(self, left: Sequence[DeadLetter]) -> bool:
        """What was taken is in the store, but for `left`, which is set aside again; false if that failed."""
        if left and not self.append(left):
            return False
        self._taken.unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def _locked(self, flags: int) -> Iterator[int]:
        """The file, locked, and still the one of this name. Raises OSError."""
        while True:
            fd = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_ino in _identity(self.path)[:1]:
                    yield fd
                    return
            finally:
                os.close(fd)


def _append(fd: int, lines: bytes) -> bool:
    """Write and sync all of it, or leave the file as it was. Raises OSError."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        lines = b"\n" + lines  # the machine died while the last line was written
    if size + len(lines) > MAX_FILE_BYTES:
        return False
    try:
        written = 0
        while written < len(lines):
            written += os.write(fd, lines[written:])  # on a full disk some of it is written first
        os.fdatasync(fd)
    except OSError:
        os.ftruncate(fd, size)
        raise
    return True


def _identity(path: Path) -> tuple[int, ...]:
    """Number, size and time of a file: they change with it."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def _encoded(letter: DeadLetter) -> bytes:
    outcome = letter.outcome
    assert outcome.node_id is not None
    return msgspec.json.encode(
        {
            "id": id_text(outcome.id),
            "attempt": outcome.attempt,
            "node_id": outcome.node_id.hex(),
            "why": letter.why,
            "outcome": {name: getattr(outcome, name) for name in _FIELDS},
        }
    )


def _decoded(line: bytes) -> DeadLetter | None:
    """The letter of a line, None if it is damaged."""
    try:
        document = msgspec.json.decode(line, type=_Document)
        fields: dict[str, Any] = {
            name: msgspec.convert(value, _FIELDS[name])
            for name, value in document.outcome.items()
            if name in _FIELDS
        }
        fields["node_id"] = bytes.fromhex(document.node_id)
        return DeadLetter(Outcome(**fields), document.why)
    except (msgspec.MsgspecError, TypeError, ValueError):
        return None
