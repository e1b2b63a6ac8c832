"""Files and environment variables to one checked configuration, with every error and its origin."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workerd import lean_imports
from workerd.config import text_validators as texts
from workerd.config.config_value import NestedKeys
from workerd.config.model import tables_with
from workerd.config.validators import Validator
from workerd.config.wrong_value import wrong
from workerd.errors import ConfigError, InvalidValue

KeyPath = tuple[str | int, ...]
"""Where a value is: table names, keys and indexes of lists."""

MAX_ERRORS_SHOWN = 200
"""A file of another program would have thousands."""

# Needed by the child that reads the files, and for errors.
difflib = lean_imports.deferred("difflib")
tomllib = lean_imports.deferred("tomllib")

_BARE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def key_text(key: KeyPath) -> str:
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
    """A clause for the end of an error: the nearest known name, or all of them."""
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
    """Configuration errors, collected so that all are reported at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, source: str, key: KeyPath, message: str) -> None:
        """Add an error: its source, its key, what was expected and got."""
        self.found.append(f"{source}: {key_text(key)}: {message}" if key else f"{source}: {message}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with all of them."""
        if not self.found:
            return
        unique = list(dict.fromkeys(self.found))
        if len(unique) > MAX_ERRORS_SHOWN:
            unique = [*unique[:MAX_ERRORS_SHOWN], f"… and {len(unique) - MAX_ERRORS_SHOWN} more"]
        raise ConfigError(unique)


DEFAULT_FOLDER = Path("/etc/workerd")
MAX_FILE_BYTES = 4 << 20
ENV_PREFIX = "WORKERD_"
ENV_SEPARATOR = "__"
PATH_VARIABLE = "WORKERD_CONFIG"


class ConfigTree:
    """The merged values of all sources; a later source wins."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: list[str] = []
        self._origins: dict[KeyPath, str] = {}

    def add(self, source: str, values: dict[str, Any]) -> None:
        """Merge `values` in: tables are merged, everything else is replaced."""
        self.sources.append(source)
        self._merge(self.values, values, (), source)

    def _merge(self, into: dict[str, Any], new: dict[str, Any], key: KeyPath, source: str) -> None:
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

    def origin(self, key: KeyPath) -> str:
        """The source of this key, or of the table around it."""
        while key:
            if key in self._origins:
                return self._origins[key]
            key = key[:-1]
        return self.sources[0] if self.sources else "configuration"


def read(path: Path | None, environ: Mapping[str, str], errors: ConfigErrors) -> ConfigTree:
    """Everything that configures this node, from `path` and the environment.

    Without a path it is what PATH_VARIABLE names, else /etc/workerd.
    """
    named = environ.get(PATH_VARIABLE)
    if path is None and named:
        path = Path(named)
    tree = ConfigTree()
    overrides = {
        name: text for name, text in environ.items() if name.startswith(ENV_PREFIX) and ENV_SEPARATOR in name
    }
    for file in _files(path, bool(overrides), errors):
        values = _read_file(file, errors)
        if values is not None:
            tree.add(str(file), values)
    for name in sorted(overrides):
        _override(tree, name, overrides[name], errors)
    return tree


def _files(path: Path | None, overridden: bool, errors: ConfigErrors) -> list[Path]:
    folder = path or DEFAULT_FOLDER
    try:
        if folder.is_dir():
            return _files_of_folder(folder, errors)
        if folder.exists():
            return [folder]
    except OSError as error:
        errors.add(str(folder), (), f"cannot be read: {error.strerror}")
        return []
    # A container may be configured by its environment alone.
    if path is not None or not overridden:
        errors.add(
            str(folder),
            (),
            "expected a file or folder, found none; name one with -c or WORKERD_CONFIG, or `workerd install`",
        )
    return []


def _files_of_folder(folder: Path, errors: ConfigErrors) -> list[Path]:
    main, more = folder / "workerd.toml", folder / "conf.d"
    files = [main] if main.exists() else []
    try:
        files += _toml_files(more)
    except OSError as error:
        errors.add(str(more), (), f"cannot be read: {error.strerror}")
        return files
    if not files:
        errors.add(str(folder), (), "expected workerd.toml or conf.d/*.toml in this folder, found neither")
    return files


def _toml_files(folder: Path) -> list[Path]:
    # Not by Path.glob, for which a folder that may not be read is empty: its pools would end at a reload.
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [folder / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def _read_file(file: Path, errors: ConfigErrors) -> dict[str, Any] | None:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            errors.add(str(file), (), f"expected a file of at most {MAX_FILE_BYTES >> 20} MiB")
            return None
        values: dict[str, Any] = tomllib.loads(raw.decode("utf-8-sig").replace("\r\n", "\n"))
        return values
    except OSError as error:
        errors.add(str(file), (), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        errors.add(str(file), (), f"expected UTF-8, got the byte 0x{raw[error.start]:02x} (at line {line})")
    except tomllib.TOMLDecodeError as error:
        errors.add(str(file), (), f"expected TOML, got a syntax error: {error}")
    except RecursionError:
        errors.add(str(file), (), "expected TOML, got nesting that is too deep")
    return None


def _override(tree: ConfigTree, name: str, text: str, errors: ConfigErrors) -> None:
    source = f"environment variable {name}"
    parts = name.removeprefix(ENV_PREFIX).split(ENV_SEPARATOR)
    if not all(parts):
        errors.add(source, (), f"expected a name such as {ENV_PREFIX}STORE{ENV_SEPARATOR}URL")
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
    """The values of one table; what is wrong with them is added to the errors, nothing raises."""

    def __init__(
        self, values: Mapping[str, Any], key: KeyPath, tree: ConfigTree, errors: ConfigErrors
    ) -> None:
        self.values = values
        self.key = key
        self._tree = tree
        self._errors = errors

    def error(self, message: str, *more: str | int) -> None:
        """Add an error at a key of this table, or at the table itself."""
        key = (*self.key, *more)
        self._errors.add(self._tree.origin(key), key, message)

    def read(self, keys: Mapping[str, Validator | NestedKeys]) -> dict[str, Any]:
        """The values of the known keys that are given and right, converted."""
        found: dict[str, Any] = {}
        for name, value in self.values.items():
            key = keys.get(name)
            if key is None:
                self.unknown(name, keys)
            elif isinstance(key, Validator):
                self._convert(found, name, key, value)
            elif isinstance(value, dict):
                found[name] = self.child(value, name).read(key)
            else:
                self.error(str(wrong("a table", value)), name)
        return found

    def _convert(self, found: dict[str, Any], name: str, validator: Validator, value: object) -> None:
        try:
            found[name] = validator(value)
        except InvalidValue as error:
            self.error(str(error), name)

    def unknown(self, name: str, known: Mapping[str, object]) -> None:
        """Add an error about an unknown key; its value is not shown, it may be a secret."""
        is_table = not self.key and isinstance(self.values[name], dict)  # [handler.x] is no key of another
        elsewhere = tables_with(name) if len(self.key) < 3 and not is_table else []
        hint = f"; it belongs in {' or '.join(elsewhere)}" if elsewhere else nearest(name, known)
        self.error(f"expected a known key, got an unknown one{hint}", name)

    def child(self, values: Mapping[str, Any], *more: str | int) -> Table:
        """The table at a key below this one."""
        return Table(values, (*self.key, *more), self._tree, self._errors)

    def table(self, name: str) -> Table:
        """The table `name`; empty if missing or not a table."""
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            self.error("expected a table, got something else", name)
            value = {}
        return self.child(value, name)

    def tables(self) -> Iterator[tuple[str, Table]]:
        """The tables of this one by name; anything else is an error and left out."""
        for name, value in self.values.items():
            table = self.table(name)
            if isinstance(value, dict):
                yield name, table


def check_name(table: Table, name: str) -> bool:
    """Whether the table's own name is valid; an error if not."""
    try:
        texts.unreserved_name(name)
    except InvalidValue as error:
        table.error(str(error))
        return False
    return True
