"""Bars with whiskers as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, LABEL, BAR, GAP, TOP = 860, 330, 20, 8, 48
ROOM = WIDTH - LABEL - 110


class Bar(NamedTuple):
    """One line of a plot; `low` and `high` are the whiskers."""

    label: str
    value: float
    low: float
    high: float
    own: bool = True
    text: str = ""


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """A plot with its title, the longest bar as wide as there is room."""
    most = max([row.high for row in rows] + [1e-9])
    height = TOP + len(rows) * (BAR + GAP) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        ' font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="26" font-size="16" font-weight="600">{escape(title)} ({escape(unit)})</text>',
    ]
    for number, row in enumerate(rows):
        parts += _line(row, TOP + number * (BAR + GAP), most)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(row: Bar, y: float, most: float) -> list[str]:
    label = f'<text x="{LABEL - 8}" y="{y + BAR / 2 + 4}" text-anchor="end">{escape(row.label)}</text>'
    return [label, *_bar(row, y, most, LABEL, ROOM)]


def _bar(row: Bar, y: float, most: float, left: float, room: float) -> list[str]:
    def at(value: float) -> float:
        return left + min(1.0, max(0.0, value) / most) * room

    middle = y + BAR / 2
    colour = "#2b6cb0" if row.own else "#a0aec0"
    value = row.text or (f"{row.value:,.3g}" if abs(row.value) < 100 else f"{row.value:,.0f}")
    return [
        f'<rect x="{left}" y="{y}" width="{at(row.value) - left:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<path d="M{at(row.low):.1f} {middle}H{at(row.high):.1f}" stroke="#222"/>',
        f'<text x="{at(row.high) + 6:.1f}" y="{middle + 4}">{value}</text>',
    ]


# -- several questions beside each other

SIDE, EDGE = 144, 20
LINE = BAR + GAP


class Column(NamedTuple):
    """One question: a bar for each label that has an answer."""

    title: str
    note: str
    bars: Mapping[str, Bar]


def columns(title: str, labels: Mapping[str, str], made: Sequence[Column]) -> str:
    """Columns of bars, each with its own scale, on the same lines."""
    width, top = (WIDTH - SIDE) // len(made), 92
    height = top + len(labels) * LINE + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        ' font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="26" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    for number, label in enumerate(labels.values()):
        y = top + number * LINE + BAR / 2 + 4
        parts.append(f'<text x="{SIDE - 8}" y="{y}" text-anchor="end">{escape(label)}</text>')
    for place, column in enumerate(made):
        left = SIDE + place * width
        parts.append(f'<text x="{left}" y="56" font-weight="600">{escape(column.title)}</text>')
        parts.append(f'<text x="{left}" y="74" font-size="11" fill="#666">{escape(column.note)}</text>')
        # One long whisker would make all bars invisible: it is cut, its end is written beside it.
        most = min(
            max([bar.high for bar in column.bars.values()] + [1e-9]),
            2 * max([bar.value for bar in column.bars.values()] + [1e-9]),
        )
        for number, label in enumerate(labels):
            if label in column.bars:
                y = top + number * LINE
                parts += _bar(column.bars[label], y, most, left, width - EDGE - 76)
    return "\n".join([*parts, "</svg>"]) + "\n"
