"""Small SVG step charts with a text alternative for screen readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workerd.gateway.dashboard.components import Markup, el

WIDTH, HEIGHT = 300.0, 72.0


@dataclass(frozen=True)
class ChartLine:
    """One line. `tone` is the CSS class of its color; a None value is a gap."""

    name: str
    tone: str
    values: Sequence[float | None]


def chart(
    title: str, lines: Sequence[ChartLine], format_value: Callable[[float | None], str], span: str
) -> Markup:
    """A figure of lines on one scale from zero; `span` names the period shown, such as "last 5 min"."""
    values = [value for line in lines for value in line.values if value is not None]
    top = max(values, default=0.0)
    maximum = format_value(top if values else None)
    current = "; ".join(f"{line.name} now {format_value(_latest(line))}" for line in lines)
    picture = el(
        "svg",
        [_area(line, top) for line in lines[:1]],
        [el("path", d=d, class_=f"line {line.tone}") for line in lines if (d := _path(line.values, top))],
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}, {span}: {current}; maximum {maximum}",
    )
    legend = [
        el(
            "li",
            el("span", class_=f"key {line.tone}", aria_hidden="true"),
            line.name,
            " ",
            el("b", format_value(_latest(line))),
        )
        for line in lines
    ]
    return el(
        "figure",
        el("figcaption", title),
        el("ul", legend, class_="legend"),
        el("div", picture, el("span", maximum, class_="top"), class_="plot"),
        el("p", span, class_="span"),
        class_="chart",
    )


SPARK_WIDTH, SPARK_HEIGHT = 96, 24


def spark(counts: Sequence[int], label: str) -> Markup:
    """A line of bars without axes, one for each count; `label` says it in words."""
    top = max([1, *counts])
    width = SPARK_WIDTH / max(1, len(counts))
    bars = []
    for index, count in enumerate(counts):
        height = max(2.0, round(count / top * SPARK_HEIGHT, 1)) if count else 1.0
        bars.append(
            el(
                "rect",
                x=round(index * width, 1),
                y=SPARK_HEIGHT - height,
                width=round(width - 1, 1),
                height=height,
                class_=None if count else "none",
            )
        )
    return el(
        "svg", bars, viewBox=f"0 0 {SPARK_WIDTH} {SPARK_HEIGHT}", width=SPARK_WIDTH, height=SPARK_HEIGHT,
        role="img", aria_label=label, class_="spark",
    )  # fmt: skip


def _latest(line: ChartLine) -> float | None:
    return next((value for value in reversed(line.values) if value is not None), None)


def _segments(values: Sequence[float | None], top: float) -> list[list[tuple[float, float, float]]]:
    """The steps of each segment of the line: start, end and height of a value; gaps separate segments.

    Each value holds for its whole interval: nothing between two measurements is made up.
    """
    width = WIDTH / max(1, len(values))
    segments: list[list[tuple[float, float, float]]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            segments.append([])
        else:
            y = HEIGHT - 2 - (value / top if top else 0.0) * (HEIGHT - 6)
            segments[-1].append((round(index * width, 1), round((index + 1) * width, 1), round(y, 1)))
    return [segment for segment in segments if segment]


def _path(values: Sequence[float | None], top: float) -> str:
    return " ".join("M" + _steps(segment) for segment in _segments(values, top))


def _steps(segment: Sequence[tuple[float, float, float]]) -> str:
    return " L".join(f"{start} {y} L{end} {y}" for start, end, y in segment)


def _area(line: ChartLine, top: float) -> list[Markup]:
    return [
        el(
            "path",
            d=f"M{segment[0][0]} {HEIGHT:g} L{_steps(segment)} L{segment[-1][1]} {HEIGHT:g} Z",
            class_=f"area {line.tone}",
        )
        for segment in _segments(line.values, top)
    ]
