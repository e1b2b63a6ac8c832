"""A request's graph as SVG: each job stands to the right of the jobs it needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from workerd.config.graph import depths
from workerd.config.workflow_config import WorkflowJob
from workerd.gateway.dashboard.components import Markup, el, path, state_name, tone

BOX_WIDTH, BOX_HEIGHT = 176, 46
COLUMN_GAP, ROW_GAP = 52, 18
MAX_JOBS, MAX_EDGES = 200, 2000
"""Larger graphs are not drawn; the page lists their jobs."""
MAX_LABEL_CHARS = 22


def columns(jobs: Sequence[WorkflowJob]) -> list[list[WorkflowJob]]:
    """The jobs by the length of the longest path to them; those of `then` and `finally` behind all others.

    Jobs of a cycle are left out, and those that need one that does not exist.
    """
    # What does not exist needs itself, so that it is never done.
    unknown = {need: (need,) for job in jobs for need in job.needs}
    depth = depths(unknown | {job.name: job.needs for job in jobs})
    # Steps are counted through: `then` and `finally` need nothing, and follow all the same.
    result: dict[int, list[WorkflowJob]] = {}
    for job in jobs:
        if job.name in depth:
            result.setdefault(max(depth[job.name], job.step), []).append(job)
    return [result[column] for column in sorted(result)]


def draw(jobs: Sequence[WorkflowJob], created: Mapping[str, dict[str, Any]]) -> Markup | None:
    """The graph; None if it has no jobs or too many. `created`: documents of created jobs, by name."""
    if len(jobs) > MAX_JOBS or sum(len(job.needs) for job in jobs) > MAX_EDGES:
        return None
    layout = columns(jobs)
    if not layout:
        return None
    height = max(map(len, layout)) * (BOX_HEIGHT + ROW_GAP) + ROW_GAP
    width = len(layout) * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP + 8
    at: dict[str, tuple[float, float]] = {}
    for x, column in enumerate(layout):
        top = (height - len(column) * (BOX_HEIGHT + ROW_GAP) + ROW_GAP) / 2
        for y, job in enumerate(column):
            at[job.name] = (4 + x * (BOX_WIDTH + COLUMN_GAP), top + y * (BOX_HEIGHT + ROW_GAP))
    spawned = Counter(name.partition("/")[0] for name in created if "/" in name)
    edges = [_edge(at[need], at[job.name]) for job in jobs if job.name in at for need in job.needs]
    boxes = [
        _box(job, created.get(job.name), at[job.name], spawned[job.name]) for job in jobs if job.name in at
    ]
    picture = el(
        "svg",
        edges,
        boxes,
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        role="group",
        aria_label=f"Graph of {len(jobs)} jobs, also listed in the table below",
    )
    return el("div", picture, class_="graph", tabindex="0", role="region", aria_label="Graph")


def _edge(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    x1, y1, x2, y2 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2, end[0], end[1] + BOX_HEIGHT / 2
    bend = max(20.0, (x2 - x1) / 2)
    return el(
        "path",
        d=f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}",
        class_="edge",
    )


def _box(job: WorkflowJob, document: dict[str, Any] | None, at: tuple[float, float], spawned: int) -> Markup:
    state = "not created" if document is None else state_name(document["status"])
    css_class = "box later" if document is None else f"box {tone(document['status'])}"
    more = f" +{spawned} spawned" if spawned else ""
    inner = [
        el("rect", width=BOX_WIDTH, height=BOX_HEIGHT, rx=8),
        el("text", _truncate(job.name), x=12, y=19, class_="name"),
        el(
            "text", _truncate(f"{state}{more} · {job.handler}", MAX_LABEL_CHARS + 4), x=12, y=36, class_="sub"
        ),
        el("title", f"{job.name}: {state}{more}, handler {job.handler}"),
    ]
    group = el("g", inner, class_=css_class, transform=f"translate({at[0]:g} {at[1]:g})")
    if document is None:
        return group
    return el("a", group, href=path("ui", "jobs", document["id"]), aria_label=f"{job.name}, {state}")


def _truncate(text: str, max_chars: int = MAX_LABEL_CHARS) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
