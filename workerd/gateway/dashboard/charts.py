"""Small charts as SVG: a few lines over time, described in words for those who do not see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workerd.gateway.dashboard.components import Markup, el

WIDTH, HEIGHT = 300.0, 72.0


@dataclass(frozen=True)
class ChartLine:
    """One line: its name, the class that colours it, and its values, None where there is none."""

    name: str
    tone: str
    values: Sequence[float | None]


def chart(title: str, lines: Sequence[ChartLine], say: Callable[[float | None], str], span: str) -> Markup:
    """A figure of lines on one scale from zero; `span`: the time that it covers, in words."""
    known = [value for line in lines for value in line.values if value is not None]
    top = max(known, default=0.0)
    words = "; ".join(f"{line.name} now {say(_now(line))}" for line in lines)
    picture = el(
        "svg",
        [_area(line, top) for line in lines[:1]],
        [el("path", d=d, class_=f"line {line.tone}") for line in lines if (d := _path(line.values, top))],
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}, {span}: {words}; at most {say(top if known else None)}",
    )
    legend = [
        el(
            "li",
            el("span", class_=f"key {line.tone}", aria_hidden="true"),
            line.name,
            " ",
            el("b", say(_now(line))),
        )
        for line in lines
    ]
    return el(
        "figure",
        el("figcaption", title),
        el("ul", legend, class_="legend"),
        el("div", picture, el("span", say(top if known else None), class_="top"), class_="plot"),
        el("p", span, class_="span"),
        class_="chart",
    )


def _now(line: ChartLine) -> float | None:
    return next((value for value in reversed(line.values) if value is not None), None)


def _points(values: Sequence[float | None], top: float) -> list[list[tuple[float, float]]]:
    """The line's pieces, broken where values are missing."""
    step = WIDTH / max(1, len(values) - 1)
    pieces: list[list[tuple[float, float]]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            y = HEIGHT - 2 - (value / top if top else 0.0) * (HEIGHT - 6)
            pieces[-1].append((round(index * step, 1), round(y, 1)))
    return [piece for piece in pieces if piece]


def _path(values: Sequence[float | None], top: float) -> str:
    return " ".join(
        "M"
        + " L".join(
            f"{x} {y}" for x, y in (piece if len(piece) > 1 else [*piece, (piece[0][0] + 2, piece[0][1])])
        )
        for piece in _points(values, top)
    )


def _area(line: ChartLine, top: float) -> list[Markup]:
    return [
        el(
            "path",
            d=f"M{piece[0][0]} {HEIGHT:g} L"
            + " L".join(f"{x} {y}" for x, y in piece)
            + f" L{piece[-1][0]} {HEIGHT:g} Z",
            class_=f"area {line.tone}",
        )
        for piece in _points(line.values, top)
        if len(piece) > 1
    ]
