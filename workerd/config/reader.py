"""Files and environment variables to one checked configuration, with every error and its origin."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workerd.config.schema import Keys, Nested, homes
from workerd.config.validators import Kind, wrong
from workerd.errors import ConfigError

Key = tuple[str | int, ...]
"""Where a value stands: table names, keys and places in lists."""

MAX_ERRORS_SHOWN = 200
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
    import difflib

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


class ConfigErrors:
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
        if len(unique) > MAX_ERRORS_SHOWN:
            unique = [*unique[:MAX_ERRORS_SHOWN], f"… and {len(unique) - MAX_ERRORS_SHOWN} more"]
        raise ConfigError(unique)


DEFAULT = Path("/etc/workerd")
LARGEST_FILE = 4 << 20
"""Bytes; a configuration is written by hand."""
PREFIX = "WORKERD_"
BETWEEN = "__"


class ConfigTree:
    """The merged values of all sources; of two that say the same key, the later wins."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: list[str] = []
        self._origins: dict[Key, str] = {}

    def add(self, source: str, values: dict[str, Any]) -> None:
        """Lay `values` over what is there: tables are merged, everything else is replaced."""
        self.sources.append(source)
        self._merge(self.values, values, (), source)

    def _merge(self, into: dict[str, Any], new: dict[str, Any], key: Key, source: str) -> None:
        for name, value in new.items():
            here = (*key, name)
            if isinstance(value, dict):
                if not isinstance(into.get(name), dict):
                    into[name] = {}
                    self._origins[here] = source
                self._merge(into[name], value, here, source)
            else:
                into[name] = value
                self._origins[here] = source

    def origin(self, key: Key) -> str:
        """The source that said this key, or the table around it."""
        while key:
            if key in self._origins:
                return self._origins[key]
            key = key[:-1]
        return self.sources[0] if self.sources else "configuration"


def read(path: Path | None, environ: Mapping[str, str], faults: ConfigErrors) -> ConfigTree:
    """Everything that configures this node, from `path` (or /etc/workerd) and the environment."""
    tree = ConfigTree()
    overrides = {name: text for name, text in environ.items() if name.startswith(PREFIX) and BETWEEN in name}
    for file in _files(path, bool(overrides), faults):
        values = _read_file(file, faults)
        if values is not None:
            tree.add(str(file), values)
    for name in sorted(overrides):
        _override(tree, name, overrides[name], faults)
    return tree


def _files(path: Path | None, overridden: bool, faults: ConfigErrors) -> list[Path]:
    folder = path or DEFAULT
    try:
        if folder.is_dir():
            return _files_of_folder(folder, faults)
        if folder.exists():
            return [folder]
    except OSError as error:
        faults.add(str(folder), (), f"cannot be read: {error.strerror}")
        return []
    # A container may be configured by its environment alone.
    if path is not None or not overridden:
        faults.add(
            str(folder), (), "expected a file or folder, found none; name one with -c, or `workerd install`"
        )
    return []


def _files_of_folder(folder: Path, faults: ConfigErrors) -> list[Path]:
    main = folder / "workerd.toml"
    more = sorted(p for p in (folder / "conf.d").glob("*.toml") if not p.name.startswith("."))
    files = ([main] if main.exists() else []) + more
    if not files:
        faults.add(str(folder), (), "expected workerd.toml or conf.d/*.toml in this folder, found neither")
    return files


def _read_file(file: Path, faults: ConfigErrors) -> dict[str, Any] | None:
    try:
        with file.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
        if len(raw) > LARGEST_FILE:
            faults.add(str(file), (), f"expected a file of at most {LARGEST_FILE >> 20} MiB")
            return None
        return tomllib.loads(raw.decode("utf-8-sig").replace("\r\n", "\n"))
    except OSError as error:
        faults.add(str(file), (), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        faults.add(str(file), (), f"expected UTF-8, got the byte 0x{raw[error.start]:02x} (at line {line})")
    except tomllib.TOMLDecodeError as error:
        faults.add(str(file), (), f"expected TOML, got a syntax error: {error}")
    except RecursionError:
        faults.add(str(file), (), "expected TOML of sensible depth, got nesting without end")
    return None


def _override(tree: ConfigTree, name: str, text: str, faults: ConfigErrors) -> None:
    source = f"environment variable {name}"
    parts = name.removeprefix(PREFIX).split(BETWEEN)
    if not all(parts):
        faults.add(source, (), f"expected a name such as {PREFIX}STORE{BETWEEN}URL")
        return
    # Names of handlers may hold capitals, which shells like to write throughout.
    names: list[str] = []
    table: Any = tree.values
    for part in parts:
        known = {k.lower(): k for k in table} if isinstance(table, dict) else {}
        names.append(known.get(part.lower(), part.lower()))
        table = table.get(names[-1]) if isinstance(table, dict) else None
    value: Any = _value(text)
    for part in reversed(names):
        value = {part: value}
    tree.add(source, value)


def _value(text: str) -> Any:
    """TOML where it is TOML, else the text itself."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return values["value"] if values.keys() == {"value"} else text


class Table:
    """Values that stand at `key`; everything wrong with them becomes a fault, nothing raises."""

    def __init__(self, values: Mapping[str, Any], key: Key, tree: ConfigTree, faults: ConfigErrors) -> None:
        self.values = values
        self.key = key
        self._tree = tree
        self._faults = faults

    def fault(self, message: str, *more: str | int) -> None:
        """Note what is wrong at a key below this table, or at the table itself."""
        key = (*self.key, *more)
        self._faults.add(self._tree.origin(key), key, message)

    def read(self, keys: Keys) -> dict[str, Any]:
        """The values of the known keys that are given and right, converted."""
        found: dict[str, Any] = {}
        for name, value in self.values.items():
            kind = keys.get(name)
            if kind is None:
                self.unknown(name, keys)
            elif isinstance(kind, Nested):
                if isinstance(value, dict):
                    found[name] = self.child(value, name).read(dict(kind.keys))
                else:
                    self.fault(str(wrong("a table", value)), name)
            else:
                self._convert(found, name, kind, value)
        return found

    def _convert(self, found: dict[str, Any], name: str, kind: Kind, value: object) -> None:
        try:
            found[name] = kind(value)
        except ValueError as error:
            self.fault(str(error), name)

    def unknown(self, name: str, known: Mapping[str, object]) -> None:
        """Note a key that is not known here; its value may be anything and is not shown."""
        elsewhere = homes(name) if len(self.key) < 3 else []
        hint = f"; it belongs in {' or '.join(elsewhere)}" if elsewhere else nearest(name, known)
        self.fault(f"expected a known key, got an unknown one{hint}", name)

    def child(self, values: Mapping[str, Any], *more: str | int) -> Table:
        """The table at a key below this one."""
        return Table(values, (*self.key, *more), self._tree, self._faults)

    def table(self, name: str) -> Table:
        """The table `name`, empty if it is not given or is none."""
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            self.fault("expected a table, got something else", name)
            value = {}
        return self.child(value, name)

    def tables(self) -> Iterator[tuple[str, Table]]:
        """The tables below this one, by name; anything else is a fault and left out."""
        for name, value in self.values.items():
            table = self.table(name)
            if isinstance(value, dict):
                yield name, table
