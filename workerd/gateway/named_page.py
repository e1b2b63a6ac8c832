"""Pages of lists that are read as a whole: handlers, nodes and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workerd.document_types import Document

NODE_CURSOR = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[\s\S]{1,255}"
"""Id and name of a node. Ids are UUIDv7, so that incarnations of a name are in the order of their starts."""


@dataclass(frozen=True)
class NamedPage:
    """`limit` items after the cursor, by name; None: all."""

    limit: int | None
    after: str | None
    of_nodes: bool = False

    def of(self, kind: str, listed: Sequence[Document]) -> Document:
        """The answer: the page and the cursor of the next one."""
        items = sorted(listed, key=self._key)
        if self.after is not None:
            start = self._start(self.after)
            items = [item for item in items if self._key(item) > start]
        page = items if self.limit is None else items[: self.limit]
        return {kind: page, "next": self._cursor(page[-1]) if len(page) < len(items) else None}

    def _key(self, item: Document) -> tuple[str, str]:
        return item["name"], item["id"] if self.of_nodes else ""

    def _start(self, after: str) -> tuple[str, str]:
        if not self.of_nodes:
            return after, ""
        ident, _, name = after.partition(".")
        return name, ident

    def _cursor(self, item: Document) -> str:
        name, ident = self._key(item)
        return f"{ident}.{name}" if self.of_nodes else name
