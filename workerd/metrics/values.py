"""Metrics that handlers define, in prometheus-client's multiprocess files, one set for each worker slot."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import string
import struct
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # for the base classes alone; importing them loads importlib.resources, tempfile, shutil, bz2 and lzma
    Loader = MetaPathFinder = object

FIRST_FILE_BYTES = 16 * 1024
MAX_FILE_BYTES = 1024 * 1024
"""Series beyond it are kept in memory and not shown."""

_USED = struct.Struct("i")
_PAIR = struct.Struct("dd")
_PLAIN = frozenset(string.ascii_letters + string.digits + ".-")

_LIBRARY = "prometheus_client.values"


def key_of(
    metric_name: str, name: str, labelnames: Sequence[str], labelvalues: Sequence[str], help_text: str
) -> str:
    """The key of a series in a file, equal to the library's `mmap_key`, which importing would load."""
    labels = dict(zip(labelnames, labelvalues, strict=False))
    return json.dumps([metric_name, name, labels, help_text], sort_keys=True)


class _MetricsFile:
    """One mapped file of named doubles, written by one process. Raises OSError if it cannot be created."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._positions: dict[str, int] = {}
        # Never closed: a mapping holds a descriptor, and a handler may have closed it and opened its own file
        # under the same number.
        self._maps: list[mmap.mmap] = []
        self._map = self._mapped(FIRST_FILE_BYTES)
        self._used: int = min(max(_USED.unpack_from(self._map)[0], 8), len(self._map))
        self._read()

    def _mapped(self, least: int) -> mmap.mmap:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = max(os.fstat(fd).st_size, least)
            # Writing to a mapped page that the disk has no room for would kill the process (SIGBUS).
            os.posix_fallocate(fd, 0, size)
            self._maps.append(mmap.mmap(fd, size))
        finally:
            os.close(fd)
        return self._maps[-1]

    def _read(self) -> None:
        at = 8
        while at + 4 <= self._used:
            length: int = _USED.unpack_from(self._map, at)[0]
            value = at + 4 + length + 8 - (length + 4) % 8
            if length <= 0 or value + 16 > self._used or self._map[at + 4] != ord("["):
                self._used = at  # damaged: overwrite it from here
                break
            self._positions[self._map[at + 4 : at + 4 + length].decode("utf-8", "replace")] = value
            at = value + 16

    def position(self, key: str) -> int | None:
        """The offset of the value of this key; None if there is no room for another."""
        at = self._positions.get(key)
        return at if at is not None else self._add(key)

    def _add(self, key: str) -> int | None:
        name = key.encode("utf-8", "replace")
        padded = name + b" " * (8 - (len(name) + 4) % 8)
        entry = _USED.pack(len(name)) + padded + bytes(16)
        end = self._used + len(entry)
        if end > len(self._map) and not self._grow(end):
            return None
        self._map[self._used : end] = entry
        self._map[:4] = _USED.pack(end)  # last: a reader never sees half an entry
        self._used = end
        self._positions[key] = end - 16
        return end - 16

    def _grow(self, needed: int) -> bool:
        size = len(self._map)
        while size < needed:
            size *= 2
        if size > MAX_FILE_BYTES:
            return False
        try:
            self._map = self._mapped(size)
        except OSError:
            return False
        return True

    def read(self, at: int) -> float:
        return float(_PAIR.unpack_from(self._map, at)[0])

    def write(self, at: int, value: float, timestamp: float) -> None:
        # One assignment: struct.pack_into would show a zero in between.
        self._map[at : at + 16] = _PAIR.pack(value, timestamp)


def _listed(folder: Path) -> list[str]:
    """Its files; the folder is created if it is missing."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        os.makedirs(folder, 0o700, exist_ok=True)
        return []


class _Slot:
    """The slot whose files this process writes, none until `enter`, and all values of the process."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.entered = 0
        self._folder: Path | None = None
        self._name = ""
        self._files: dict[str, _MetricsFile | None] = {}
        self._inherited: list[dict[str, _MetricsFile | None]] = []
        self.values: list[Value] = []

    def enter(self, folder: Path, name: str) -> None:
        self._leave()
        # The library splits the names of gauges' files at "_" and shows this part as the label `pid`.
        # Without `re` and `glob`: every worker would copy the half megabyte of memory that they touch.
        safe = "".join(c if c in _PLAIN else f"%{ord(c):x}" for c in name)
        with contextlib.suppress(OSError):
            for file in _listed(folder):
                # A gauge describes a process, and that process has ended.
                if file.startswith("gauge_") and file.rpartition("_")[2] == f"{safe}.db":
                    os.unlink(f"{folder}/{file}")
        self._folder, self._name = folder, safe
        with self.lock:
            for value in self.values:  # a series is shown as zero from its definition on
                value.bind()

    def _leave(self) -> None:
        self.entered += 1
        self._folder = None
        # Kept, not closed: in a forked child other files may have their descriptor numbers by now.
        self._inherited.append(self._files)
        self._files = {}

    def forked(self) -> None:
        """In a forked child: leave the parent's files, and a lock that may have been held."""
        self.lock = Lock()
        if self._folder is not None:
            self._leave()

    def file(self, kind: str) -> _MetricsFile | None:
        if self._folder is None:
            return None
        if kind not in self._files:
            try:
                self._files[kind] = _MetricsFile(self._folder / f"{kind}_{self._name}.db")
            except (OSError, ValueError):
                self._files[kind] = None
        return self._files[kind]


_slot = _Slot()
os.register_at_fork(after_in_child=_slot.forked)


class Value:
    """The value class of prometheus-client: a number in the slot's files, or in memory without a slot."""

    _multiprocess = True

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **kwargs: Any,
    ) -> None:
        self._kind = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        self._key: str = key_of(metric_name, name, labelnames, labelvalues, help_text)
        self._value = 0.0
        self._entered = -1
        self._file: _MetricsFile | None = None
        self._at: int | None = None
        with _slot.lock:
            _slot.values.append(self)
            self.bind()

    def bind(self) -> None:
        """Continue from what the slot's last process has counted."""
        self._entered = _slot.entered
        self._file = _slot.file(self._kind)
        self._at = self._file.position(self._key) if self._file is not None else None
        if self._file is not None and self._at is not None:
            self._value = self._file.read(self._at)

    def inc(self, amount: float) -> None:
        with _slot.lock:
            if self._entered != _slot.entered:
                self.bind()
            self._put(self._value + amount, 0.0)

    def set(self, value: float, timestamp: float | None = None) -> None:
        with _slot.lock:
            if self._entered != _slot.entered:
                self.bind()
            self._put(value, timestamp or 0.0)

    def _put(self, value: float, timestamp: float) -> None:
        self._value = value
        if self._file is not None and self._at is not None:
            self._file.write(self._at, value, timestamp)

    def get(self) -> float:
        with _slot.lock:
            if self._entered != _slot.entered:
                self.bind()
            return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """Ignored: the files have no place for exemplars."""

    def get_exemplar(self) -> None:
        return None


class _Installing(Loader):
    """Loads the library's module of values and puts our class in its place."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        vars(module)["ValueClass"] = Value


class _Finder(MetaPathFinder):
    """Hooks the library's import: without a handler that uses it, its 2 MB are not loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname == _LIBRARY else None
        if found is not None and found.loader is not None:
            found.loader = _Installing(found.loader)
        return found


def install() -> None:
    """Make every metric defined from now on, in this process and its children, of `Value`.

    Called before handlers are loaded; metrics defined earlier stay in memory and are not shown.
    """
    if _LIBRARY in sys.modules:
        vars(sys.modules[_LIBRARY])["ValueClass"] = Value
    else:
        sys.meta_path.insert(0, _Finder())


def enter(folder: Path, slot: str) -> None:
    """Write the files of `slot` from now on; if they cannot be written, count in memory only."""
    _slot.enter(folder, slot)
