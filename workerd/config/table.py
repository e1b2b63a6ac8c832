"""One table of the merged configuration, read key by key against the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workerd.config.faults import Faults, Key, nearest
from workerd.config.kinds import Kind
from workerd.config.schema import Keys, Nested, homes
from workerd.config.sources import Tree
from workerd.config.units import wrong


class Table:
    """Values that stand at `key`; everything wrong with them becomes a fault, nothing raises."""

    def __init__(self, values: Mapping[str, Any], key: Key, tree: Tree, faults: Faults) -> None:
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
