"""Which failure an attempt ended with: its class of error, and a hash that equal failures share. Pure."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from typing import NamedTuple

from workerd.errors import InvalidValue

FRAMES = 2
"""The innermost frames of the user's code that tell failures apart."""
FINGERPRINT_BYTES = 8
CLASS_LIMIT = 191
"""Characters of `error_class`."""

CRASHED = "workerd.Crashed"
OUT_OF_MEMORY = "workerd.OutOfMemory"
DEADLINE_EXCEEDED = "workerd.DeadlineExceeded"
LOST = "workerd.Lost"
REFUSED = "workerd.Refused"
BAD_VARS = "workerd.BadVars"
FAILURE = "workerd.Failure"

_PUBLIC_NAMES = {
    f"workerd.{module}.{name}": f"workerd.{name}"
    for module, names in {
        "handler": ("DeadlineExceeded", "Cancelled", "Failure", "Retry"),
        "signature": ("BadVars",),
    }.items()
    for name in names
}


class Frame(NamedTuple):
    """One frame of a stack."""

    file: str
    function: str


def public_name(class_name: str) -> str:
    """A class by the name under which its users know it, at most CLASS_LIMIT characters."""
    return _PUBLIC_NAMES.get(class_name, class_name)[:CLASS_LIMIT]


def fingerprint(
    handler: str, reason: str, error_class: str, message: str, frames: Sequence[str] = (), end: str = ""
) -> bytes:
    """What equal failures share: FINGERPRINT_BYTES bytes.

    `message`: its variable parts count for nothing. `frames`: as `user_frames` returns them. `end`: how the
    process ended, where it died.
    """
    parts = (handler, reason, error_class, constant_part(message), end, *frames[:FRAMES])
    return blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=FINGERPRINT_BYTES).digest()


def parse(text: str) -> bytes:
    """A fingerprint from its 16 hex digits. Raises InvalidValue."""
    if len(text) != 2 * FINGERPRINT_BYTES or not text.isascii() or not text.isalnum():
        raise InvalidValue(f"expected a fingerprint of 16 hex digits, got {text[:60]!r}")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidValue(f"expected a fingerprint of 16 hex digits, got {text!r}") from None


# -- the constant part of a message ----------------------------------------------------------

_VARIABLE = re.compile(
    r"""
      (?P<url>\b[A-Za-z][A-Za-z0-9+.-]{1,15}://[^\s'"<>]+)
    | (?P<text>(?:\b[BbRrUuFf]{1,2})?(?:
          (?:(?<!\w)|(?<=\b[BbRrUuFf])|(?<=\b[BbRrUuFf]{2}))'(?:\\.|[^'\\])*'(?!\w)
        | "(?:\\.|[^"\\])*" | `[^`]*` | “[^”]*” | ‘[^’]*’ | «[^»]*» ))
    | (?P<uuid>\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b)
    | (?P<path>(?<![\w)\]])(?:[A-Za-z]:)?[\w.~@+-]*(?:[/\\][\w.~@+%=-]+)+[/\\]?)
    | (?P<hex>\b0[xX][0-9A-Fa-f]+\b | \b[0-9A-Fa-f]{8,}\b)
    | (?P<mixed>\b(?=\w*\d)(?=\w*[^\W\d])(?:\d+[^\W\d]+|[^\W\d]+\d+)(?:\d+[^\W\d]*|[^\W\d]+\d*)+\b)
    | (?P<number>[-+]?(?:\d+(?:[-:.,/T_]\d+)*)(?:[eE][-+]?\d+)?)
    """,
    re.VERBOSE,
)
_REPEATED = re.compile(r"(<\w+>)(?:[\s,;:&|+-]*(?:and|or)?[\s,;:&|+-]*\1)+")


def constant_part(message: str) -> str:
    """The message with numbers, hex, UUIDs, quoted text, paths, URLs and ids replaced by what they are.

    A list of such values counts as one.
    """
    return _REPEATED.sub(r"\1", _VARIABLE.sub(_kind, message))


def _kind(match: re.Match[str]) -> str:
    # A hash may happen to have digits only.
    return "<number>" if match.lastgroup in ("uuid", "hex", "mixed") else f"<{match.lastgroup}>"


# -- frames --------------------------------------------------------------------------------

_MADE_BY_COMPILER = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
"""Frames that newer Pythons do not have any more."""
_DUMPED_THREAD = re.compile(r"(?:Current thread|Thread) 0x[0-9a-f]+")
_DUMPED_FRAME = re.compile(r'  File "([^"\n]*)", line [0-9?]+ in (.+)')


def user_frames(outermost_first: Iterable[Frame]) -> tuple[str, ...]:
    """The innermost FRAMES of the user's code, innermost first, as `file:function` without folder and line.

    Those of the standard library and of installed packages are left out, unless there are no others; but the
    package that the outermost frame belongs to is the user's, even if it is installed.
    """
    everything: deque[Frame] = deque(maxlen=FRAMES)
    users: deque[Frame] = deque(maxlen=FRAMES)
    own_package: str | None = None
    for frame in outermost_first:
        if frame.function in _MADE_BY_COMPILER:
            continue
        package = _library_package(frame.file)
        if not everything:
            own_package = package
        everything.append(frame)
        if package is None or (package == own_package and package != _STANDARD):
            users.append(frame)
    return tuple(f"{os.path.basename(file)}:{name}" for file, name in reversed(users or everything))


_STANDARD = "the standard library"


@cache
def _library_folders() -> tuple[tuple[str, str | None], ...]:
    """Folders of libraries, longest first; with the package's name where it is one for all files below."""
    paths = sysconfig.get_paths()
    standard = {paths["stdlib"], paths["platstdlib"], os.path.dirname(os.__file__)}
    installed = {paths["purelib"], paths["platlib"]}
    installed.update(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    folders: list[tuple[str, str | None]] = [(folder + os.sep, None) for folder in installed]
    folders += [(folder + os.sep, _STANDARD) for folder in standard]
    return tuple(sorted(folders, key=lambda one: -len(one[0])))


def _library_package(file: str) -> str | None:
    """The installed package that a file belongs to; None for the user's own files."""
    if file.startswith("<frozen "):
        return _STANDARD
    for folder, package in _library_folders():
        if file.startswith(folder):
            return package or file[len(folder) :].partition(os.sep)[0]
    return None


def frames_of_dump(dump: str | None) -> tuple[str, ...]:
    """The frames of a stack that faulthandler wrote: of the thread that crashed, else of the main thread."""
    if not dump:
        return ()
    return user_frames(reversed(list(_dumped_frames(dump))))


def _dumped_frames(dump: str) -> Iterator[Frame]:
    """Of one thread, innermost first: the current one, else the last, which was started first."""
    frames: list[Frame] = []
    is_current = False
    for line in dump.splitlines():
        if _DUMPED_THREAD.match(line):
            if is_current and frames:
                break
            frames, is_current = [], line.startswith("Current")
        elif (match := _DUMPED_FRAME.fullmatch(line)) is not None:
            frames.append(Frame(match[1], match[2]))
    return iter(frames)
