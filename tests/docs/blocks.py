"""The blocks of code in the documentation, and the comments that say how they are meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One block: its language, the file that it is (or empty), its text, and the comment above it."""

    page: Path
    line: int
    language: str
    file: str
    text: str
    mark: str

    @property
    def runs(self) -> bool:
        """Whether nothing says why it cannot be run."""
        return not self.mark.startswith("not run:")

    @property
    def exit_status(self) -> int:
        """The status that its last command ends with."""
        return int(self.mark.removeprefix("exit ")) if self.mark.startswith("exit ") else 0

    @property
    def name(self) -> str:
        """As a test is called: page and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """All pages that are written by hand."""
    return [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        language, _, file = found["info"].strip().partition(" ")
        line = text.count("\n", 0, found.start()) + 1
        body = re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        yield Block(page, line, language, file.strip(), body, found["mark"] or "")
