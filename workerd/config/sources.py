"""Files and environment variables -> one tree of values that knows where each came from."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workerd.config.faults import Faults, Key

DEFAULT = Path("/etc/workerd")
LARGEST_FILE = 4 << 20
"""Bytes; a configuration is written by hand."""
PREFIX = "WORKERD_"
BETWEEN = "__"


class Tree:
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


def read(path: Path | None, environ: Mapping[str, str], faults: Faults) -> Tree:
    """Everything that configures this node, from `path` (or /etc/workerd) and the environment."""
    tree = Tree()
    overrides = {name: text for name, text in environ.items() if name.startswith(PREFIX) and BETWEEN in name}
    for file in _files(path, bool(overrides), faults):
        values = _read_file(file, faults)
        if values is not None:
            tree.add(str(file), values)
    for name in sorted(overrides):
        _override(tree, name, overrides[name], faults)
    return tree


def _files(path: Path | None, overridden: bool, faults: Faults) -> list[Path]:
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


def _files_of_folder(folder: Path, faults: Faults) -> list[Path]:
    main = folder / "workerd.toml"
    more = sorted(p for p in (folder / "conf.d").glob("*.toml") if not p.name.startswith("."))
    files = ([main] if main.exists() else []) + more
    if not files:
        faults.add(str(folder), (), "expected workerd.toml or conf.d/*.toml in this folder, found neither")
    return files


def _read_file(file: Path, faults: Faults) -> dict[str, Any] | None:
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


def _override(tree: Tree, name: str, text: str, faults: Faults) -> None:
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
