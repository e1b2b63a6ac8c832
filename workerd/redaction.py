"""What of a job is not for everybody's eyes: paths of JSON values, and the texts that are found there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import msgspec

from workerd.errors import InvalidValue

REDACTED = "[redacted]"
"""Stands for a value that is not shown."""
MIN_TEXT_CHARS = 6
"""Shorter values are not looked for in texts: they would be found everywhere."""
MAX_TEXTS = 1000
"""If more values are to be looked for, the texts are not shown at all."""
MAX_SCRUBBED_CHARS = 1 << 20
"""Of both ends of a longer text; what is between is left out: no text is kept at that length."""

_PATH = re.compile(r"(?:\*|[^\s.*()\[\]{}|\\^$+?]+)(?:\.(?:\*|[^\s.*()\[\]{}|\\^$+?]+))*")
EXPECTED_PATH = 'names with dots between them, "*" for a whole name, as in "card.*"; no regular expression'

_Node = dict[Any, Any]
_END = object()
"""Key of a node whose values are redacted; no name is equal to it."""


class Secret:
    """Marks a parameter of a handler whose value is redacted: `password: Annotated[str, workerd.Secret]`."""


def checked_path(path: Any) -> str:
    """A path. Raises InvalidValue for anything else."""
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise InvalidValue(f"expected {EXPECTED_PATH}, got {path!r:.80}")
    return path


class Redaction:
    """The paths of one handler; false without any."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.paths = tuple(dict.fromkeys(paths))
        self._root: _Node = {}
        for path in self.paths:
            node = self._root
            for name in path.split("."):
                node = node.setdefault(name, {})
            node[_END] = True

    def __bool__(self) -> bool:
        return bool(self.paths)

    def shown(self, value: Any) -> Any:
        """The JSON value with REDACTED in place of what matches."""
        return _shown(value, [self._root]) if self.paths else value

    def restored(self, given: Any, stored: Any) -> Any:
        """What was shown, given back: with the stored value in place of each REDACTED at a path that matches.

        Raises InvalidValue where nothing is stored there: a mark is not a value.
        """
        return _restored(given, stored, [self._root], ()) if self.paths else given

    def shown_json(self, data: bytes) -> bytes:
        """The same for JSON text; REDACTED alone if it cannot be read."""
        if not self.paths:
            return data
        try:
            return msgspec.json.encode(self.shown(msgspec.json.decode(data)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return msgspec.json.encode(REDACTED)

    def texts(self, value: Any) -> Iterator[str]:
        """The values that match, as texts."""
        yield from _texts(value, [self._root])


NOTHING = Redaction()


def _steps(nodes: list[_Node], name: str) -> list[_Node]:
    return [child for node in nodes for child in (node.get(name), node.get("*")) if child is not None]


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return ((str(name), item) for name, item in value.items())
    return ((str(index), item) for index, item in enumerate(value))


def _shown(value: Any, nodes: list[_Node]) -> Any:
    if not isinstance(value, dict | list):
        return value
    made = {}
    for name, item in _items(value):
        found = _steps(nodes, name)
        hidden = any(_END in node for node in found)
        made[name] = REDACTED if hidden else _shown(item, found) if found else item
    return made if isinstance(value, dict) else list(made.values())


def _restored(given: Any, stored: Any, nodes: list[_Node], place: tuple[str, ...]) -> Any:
    if not isinstance(given, dict | list):
        return given
    there = dict(_items(stored)) if isinstance(stored, type(given)) else {}
    made = {}
    for name, item in _items(given):
        found = _steps(nodes, name)
        here = (*place, name)
        if item != REDACTED or not any(_END in node for node in found):
            made[name] = _restored(item, there.get(name), found, here) if found else item
        elif name in there:
            made[name] = there[name]
        else:
            raise InvalidValue(
                f'{".".join(here)}: expected a value, got "{REDACTED}", which stands for none here'
            )
    return made if isinstance(given, dict) else list(made.values())


def _texts(value: Any, nodes: list[_Node]) -> Iterator[str]:
    if not isinstance(value, dict | list):
        return
    for name, item in _items(value):
        found = _steps(nodes, name)
        if any(_END in node for node in found):
            yield from _leaves(item)
        elif found:
            yield from _texts(item, found)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for _, item in _items(value):
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield json.dumps(value, default=str)


# -- a value in texts --------------------------------------------------------------------------

_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")
"""Text that nothing escapes."""
_ESCAPED_FOR_HTML = frozenset("<>&'\"+`")
"""By the JSON of Go, .NET and PHP: as `\\u003c`."""
_HEX_LETTER = re.compile(r"[a-f]")


def _patterns(text: str) -> Iterator[str]:
    """Regular expressions of the text as it is, and as Python, JSON and addresses escape it.

    No two alternatives in one of them match the same, so that none is tried in more than one way: what
    could be read in two ways (a backslash, escaped bytes) is in a pattern of its own.
    """
    if _PLAIN.fullmatch(text):
        yield re.escape(text)
        return
    rest = "".join(map(_char_pattern, text[1:]))
    if not text.isascii():
        yield "".join(_byte_pattern(byte) for char in text for byte in _bytes_of(char))
    # Each begins with a fixed character: the search skips to it.
    yield from (first + rest for first in _char_forms(text[0]))
    if "\\" in text:
        yield re.escape(text)


@lru_cache(maxsize=1024)
def _char_pattern(char: str) -> str:
    forms = _char_forms(char)
    return forms[0] if len(forms) == 1 else f"(?:{'|'.join(forms)})"


@lru_cache(maxsize=1024)
def _char_forms(char: str) -> tuple[str, ...]:
    """Patterns of a character: after a backslash, after `%`, as it is."""
    if _PLAIN.fullmatch(char):
        return (re.escape(char),)
    escapes = {repr(char)[1:-1], ascii(char)[1:-1], json.dumps(char)[1:-1]}
    if not char.isascii() or char in _ESCAPED_FOR_HTML:
        units = char.encode("utf-16-be", "surrogatepass").hex()
        escapes.add("".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)))
    if char in "\"'/":  # of both quotes, whichever stand around the text; PHP escapes `/`
        escapes.add(f"\\{char}")
    in_texts = "|".join(sorted(_any_case(form[1:]) for form in escapes if form[:1] == "\\" and form != "\\"))
    after_backslash = (rf"\\(?:{in_texts})",) if in_texts else ()
    in_addresses = "".join(_any_case(f"%{byte:02x}") for byte in _bytes_of(char))
    # A backslash alone would begin its own escape.
    as_it_is = () if char == "\\" else (r"[ +]" if char == " " else re.escape(char),)
    return (*after_backslash, in_addresses, *as_it_is)


@lru_cache(maxsize=256)
def _byte_pattern(byte: int) -> str:
    """As `repr` of bytes has it."""
    return _any_case(repr(bytes([byte]))[2:-1]) if byte != ord("'") else r"\\?'"


def _bytes_of(char: str) -> bytes:
    return char.encode("utf-8", "backslashreplace")


def _any_case(escape: str) -> str:
    """A pattern of what stands for a character, whose hexadecimal digits may be capitals."""
    pattern = re.escape(escape)
    if len(escape) == 1:
        return pattern
    return _HEX_LETTER.sub(lambda digit: f"[{digit[0]}{digit[0].upper()}]", pattern)


def _longest(text: str) -> int:
    """Characters of the longest form of the text."""
    return sum(1 if _PLAIN.fullmatch(char) else 6 * len(_bytes_of(char)) for char in text)


class Scrubber:
    """Replaces the values of one job in texts; what it looks for is read when the first text comes.

    `values`: calls back for the JSON values of the job, of which those that match are looked for.
    """

    def __init__(self, redaction: Redaction, values: Callable[[], Iterable[Any]]) -> None:
        self._redaction = redaction
        self._values = values

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        """What is replaced; None: everything."""
        texts: set[str] = set()
        for value in self._values():
            for text in self._redaction.texts(value):
                lines = (line.strip() for line in text.splitlines())
                texts.update(part for part in (text, *lines) if len(part) >= MIN_TEXT_CHARS)
                if len(texts) > MAX_TEXTS:
                    return None
        self.longest = max(map(_longest, texts), default=0)
        longest_first = sorted(texts, key=len, reverse=True)
        return re.compile("|".join(chain.from_iterable(map(_patterns, longest_first))) or r"(?!)")

    longest = 0
    """Characters of the longest form of a text that is looked for."""

    def __call__(self, text: str) -> str:
        """The text without them."""
        pattern = self._pattern
        if pattern is None:
            return REDACTED if text else text
        if len(text) > 2 * MAX_SCRUBBED_CHARS:
            text = text[:MAX_SCRUBBED_CHARS] + text[-MAX_SCRUBBED_CHARS:]
        return pattern.sub(REDACTED, text)

    def in_bytes(self, data: bytes) -> tuple[bytes, int]:
        """Output of a program without them, and how many bytes at its end may be the beginning of one."""
        if self._pattern is None:
            return b"\n".join(REDACTED.encode() if line else b"" for line in data.split(b"\n")), 0
        if not self.longest:
            return data, 0
        text = self(data.decode("utf-8", "surrogateescape"))
        return text.encode("utf-8", "surrogateescape"), 4 * self.longest


def scrubber_of(redaction: Redaction, *texts: bytes | None) -> Scrubber:
    """A scrubber for the values of JSON texts; those that are none have no values."""
    return Scrubber(redaction, lambda: map(_decoded, filter(None, texts)))


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
