"""Faults of a configuration, gathered so that a person sees all of them at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from workerd.errors import ConfigError

Key = tuple[str | int, ...]
"""Where a value stands: table names, keys and places in lists."""

MOST = 200
"""Faults that are listed; a file of another program has thousands."""

_BARE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def key_text(key: Key) -> str:
    """`handlers.thumbnail.max_attempts`, `workflows.x.steps[2].name`; odd names quoted and escaped."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE.fullmatch(part) else json.dumps(part[:64])
            text += f".{name}" if text else name
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the nearest of the known names, or lists them; for the end of a fault."""
    import difflib  # half a megabyte that a daemon keeps, for a configuration that is wrong

    names = sorted(known)
    if not names:
        return ""
    close = difflib.get_close_matches(name[:200], names, 1, 0.6)
    if not close:
        folded = {n.lower(): n for n in names}
        close = [folded[n] for n in difflib.get_close_matches(name[:200].lower(), folded, 1, 0.6)]
    if close:
        return f'; the nearest is "{close[0]}"'
    return "; known are " + ", ".join(names[:30])


class Faults:
    """What is wrong so far."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, source: str, key: Key, message: str) -> None:
        """Note a fault: where it was written, at which key, what was expected and got."""
        self.found.append(f"{source}: {key_text(key)}: {message}" if key else f"{source}: {message}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with everything that was found."""
        if not self.found:
            return
        unique = list(dict.fromkeys(self.found))
        if len(unique) > MOST:
            unique = [*unique[:MOST], f"… and {len(unique) - MOST} more"]
        raise ConfigError(unique)
