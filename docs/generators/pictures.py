"""Diagrams as SVG: boxes and arrows with their texts, readable in light and dark."""

from __future__ import annotations

from typing import NamedTuple
from xml.sax.saxutils import escape

from workerd.job import TRANSITIONS, Status

WIDTH, HEIGHT = 150, 34
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
    'aria-label="{label}" font-family="system-ui, sans-serif" font-size="13">'
    "<style>rect{{fill:#fff;stroke:#57606a}}text{{fill:#1f2328;text-anchor:middle}}"
    ".note{{fill:#57606a;font-size:11px}}path{{stroke:#57606a;fill:none}}"
    "svg{{background:#fff}}</style>"
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" style="fill:#57606a;stroke:none"/></marker></defs>'
)


class Box(NamedTuple):
    """A text in a box around this point, with a smaller line below it."""

    text: str
    x: int
    y: int
    note: str = ""

    def svg(self) -> str:
        """The box."""
        top, left = self.y - HEIGHT // 2, self.x - WIDTH // 2
        baseline = self.y + 5 if not self.note else self.y - 1
        note = (
            f'<text class="note" x="{self.x}" y="{self.y + 12}">{escape(self.note)}</text>'
            if self.note
            else ""
        )
        return (
            f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text x="{self.x}" y="{baseline}">{escape(self.text)}</text>{note}'
        )


def _picture(label: str, width: int, height: int, parts: list[str]) -> str:
    return _HEAD.format(width=width, height=height, label=escape(label)) + "".join(parts) + "</svg>\n"


_PLACES = {
    Status.SCHEDULED: Box("scheduled", 100, 250, "due later"),
    Status.NEW: Box("new", 100, 140, "may be claimed"),
    Status.INPROGRESS: Box("inprogress", 360, 140, "claimed by a node"),
    Status.RETRY: Box("retry", 620, 40, "another row follows"),
    Status.COMPLETED: Box("completed", 620, 110),
    Status.FAILURE: Box("failure", 620, 180),
    Status.CANCELLED: Box("cancelled", 620, 250),
}


def states() -> str:
    """The statuses of a row, with an arrow for each change that `workerd.job` allows on its own."""
    arrows = []
    for status, following in TRANSITIONS.items():
        for target in sorted(following):
            if target is Status.RETRY and status is not Status.INPROGRESS:
                continue  # a person's
            arrows.append(_arrow(_PLACES[status], _PLACES[target]))
    return _picture(
        "The statuses of a row and how they follow each other", 720, 290,
        [*arrows, *(box.svg() for box in _PLACES.values())],
    )  # fmt: skip


def _arrow(start: Box, end: Box) -> str:
    if start.x == end.x:
        sign = 1 if end.y > start.y else -1
        return _path(f"M{start.x} {start.y + sign * HEIGHT // 2}V{end.y - sign * HEIGHT // 2}")
    if end.x < start.x:  # given back
        return _path(f"M{start.x - WIDTH // 2} {start.y + 9}H{end.x + WIDTH // 2}")
    x1, x2 = start.x + WIDTH // 2, end.x - WIDTH // 2
    if start.y == end.y:
        return _path(f"M{x1} {start.y - 7}H{x2}")
    return _path(f"M{x1} {start.y}C{x1 + 70} {start.y} {x2 - 70} {end.y} {x2} {end.y}")


def _path(data: str) -> str:
    return f'<path d="{data}" marker-end="url(#tip)"/>'


_TREE = (
    Box("supervisor", 360, 30, "starts, watches, restarts"),
    Box("ingester", 85, 120, "outcomes to the store"),
    Box("dispatcher", 250, 120, "claims from the store"),
    Box("gateway", 415, 120, "HTTP, dashboard"),
    Box("pool: thumbnail", 580, 120, "one for each handler"),
    Box("worker thumbnail/0", 500, 210, "one job at a time"),
    Box("worker thumbnail/1", 660, 210, "one job at a time"),
)


def process_tree() -> str:
    """Which process forks which."""
    top, *rest = _TREE
    lines = [
        _path(
            f"M{parent.x} {parent.y + HEIGHT // 2}C{parent.x} {parent.y + 55} {box.x} {box.y - 55} {box.x} {box.y - HEIGHT // 2}"
        )
        for box in rest
        for parent in [_TREE[4] if box.text.startswith("worker") else top]
    ]
    return _picture(
        "The supervisor forks roles and pools, each pool its workers",
        745,
        240,
        [*lines, *(b.svg() for b in _TREE)],
    )
