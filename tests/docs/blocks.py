"""The blocks of code in the documentation, and the comments that say how they are meant.

    python -m tests.docs.blocks

lists every block: whether it runs, or why it does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

RUNNABLE = frozenset({"bash", "console", "php", "python", "sh", "sql", "toml"})
"""Languages whose blocks run, or have a reason above them why not."""
NOT_RUN = "not run:"
RUN_BY = "run by "
EXIT = "exit "

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_FILE_COMMENT = re.compile(r"# (?P<file>[\w/]+\.py)\n")


class Block(NamedTuple):
    """One block: its language, the file that it is (or empty), its text, and the comment above it."""

    page: Path
    line: int
    language: str
    file: str
    text: str
    mark: str

    @property
    def runnable(self) -> bool:
        """Whether it is code, not data or output."""
        return self.language in RUNNABLE or bool(self.file)

    @property
    def is_output(self) -> bool:
        """Whether it is what the block before it prints."""
        return self.language == "output"

    @property
    def runs(self) -> bool:
        """Whether nothing says why it cannot be run."""
        return not self.mark.startswith((NOT_RUN, RUN_BY))

    @property
    def reason(self) -> str:
        """Why it does not run with its page; "" where it does."""
        return "" if self.runs else self.mark.removeprefix(NOT_RUN).strip()

    @property
    def exit_status(self) -> int:
        """The status that its last command ends with."""
        return int(self.mark.removeprefix(EXIT)) if self.mark.startswith(EXIT) else 0

    @property
    def name(self) -> str:
        """As a test is called: page and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """All pages."""
    return [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        language, _, file = found["info"].strip().partition(" ")
        line = text.count("\n", 0, found.start()) + 1
        body = re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        comment = _FILE_COMMENT.match(body)
        file = file.strip() or (comment["file"] if comment else "")
        yield Block(page, line, language, file, body, found["mark"] or "")


def runnable_blocks() -> list[Block]:
    """All that must run or say why not."""
    return [block for page in pages() for block in blocks(page) if block.runnable]


def main() -> None:
    found = runnable_blocks()
    for block in found:
        print(f"{block.name:50} {block.language:8} {block.reason or 'runs'}")
    run = sum(block.runs for block in found)
    print(f"\n{run} of {len(found)} blocks run with their page. The others:")
    for reason, count in Counter(block.reason for block in found if not block.runs).most_common():
        print(f"{count:4} {reason}")


if __name__ == "__main__":
    main()
