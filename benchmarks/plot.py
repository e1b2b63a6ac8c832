"""Bars with whiskers as SVG, in a few lines: a report needs no plotting library."""

from __future__ import annotations

from collections.abc import Sequence
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
    def at(value: float) -> float:
        return LABEL + max(0.0, value) / most * ROOM

    middle = y + BAR / 2
    colour = "#2b6cb0" if row.own else "#a0aec0"
    return [
        f'<text x="{LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(row.label)}</text>',
        f'<rect x="{LABEL}" y="{y}" width="{at(row.value) - LABEL:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<path d="M{at(row.low):.1f} {middle}H{at(row.high):.1f}" stroke="#222"/>',
        f'<text x="{at(row.high) + 6:.1f}" y="{middle + 4}">{row.value:,.4g}</text>'
        if row.value < 100
        else f'<text x="{at(row.high) + 6:.1f}" y="{middle + 4}">{row.value:,.0f}</text>',
    ]
