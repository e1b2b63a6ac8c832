"""The arguments of a command handler: text with `{name}` for values of vars."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from string import Formatter

from workerd.errors import InvalidValue

TYPES = ("any", "array", "bool", "date", "datetime", "decimal", "float", "int", "object", "str", "uuid")
"""Types of a `signature`, in the words that signatures of Python handlers use too."""
OPTIONAL = "?"
"""After a type: vars may leave the value out."""

_NAME = re.compile(r"[\w-]+")


class Argument:
    """One argument: `parts` are a literal text and the name of the value that follows it, None at the end."""

    def __init__(self, text: str) -> None:
        """Raises InvalidValue for braces that enclose no name."""
        if "\0" in text:
            raise InvalidValue("expected text without NUL")
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise InvalidValue(f"{error}; write {{{{ and }}}} for braces") from None
        self.parts: list[tuple[str, str | None]] = []
        for literal, name, form, conversion in parsed:
            if name is not None and (form or conversion or not _NAME.fullmatch(name)):
                raise InvalidValue("expected {name} with a name of vars; write {{ and }} for braces")
            self.parts.append((literal, name))

    @property
    def names(self) -> list[str]:
        """The values that it needs."""
        return [name for _, name in self.parts if name is not None]


def check_argument(text: object) -> str:
    """An argument as it is configured. Raises InvalidValue."""
    if not isinstance(text, str):
        raise InvalidValue("expected a list of strings")
    Argument(text)
    return text


def check_program(text: str) -> None:
    """The program: an absolute path, or a name to be found on PATH. Raises InvalidValue."""
    if Argument(text).names:
        raise InvalidValue("expected a fixed program first; only its arguments may have {name}")
    if not text or (os.sep in text and not os.path.isabs(text)):
        raise InvalidValue("expected the program first: an absolute path, or a name that is found on PATH")


def check_type(text: object) -> str:
    """A type of a `signature`. Raises InvalidValue."""
    if not isinstance(text, str) or text.removesuffix(OPTIONAL) not in TYPES:
        raise InvalidValue(f'expected one of {", ".join(TYPES)}, with "?" at its end if it may be left out')
    return text


def placeholders(command: Iterable[str]) -> list[str]:
    """The values of vars that these arguments need, each once."""
    return list(dict.fromkeys(name for text in command for name in Argument(text).names))
