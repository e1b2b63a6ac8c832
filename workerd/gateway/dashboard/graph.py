"""A request's graph as SVG: jobs in columns by what they need, drawn once they are there or expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from workerd.config.model import WorkflowJob
from workerd.gateway.dashboard.components import Markup, el, path
from workerd.job import Status, id_text
from workerd.store.columns import JobRow

BOX, TALL = 176, 46
ACROSS, DOWN = 52, 18
MOST = 200
"""Jobs that are drawn; above it the list beside it says enough."""
_TONES = {
    Status.COMPLETED: "good", Status.FAILURE: "bad", Status.INPROGRESS: "busy", Status.CANCELLED: "mute",
    Status.NEW: "wait", Status.SCHEDULED: "wait",
}  # fmt: skip
_NAMES = {Status.INPROGRESS: "running", Status.NEW: "waiting", Status.FAILURE: "failed"}
LETTERS = 22


def columns(jobs: Sequence[WorkflowJob]) -> list[list[WorkflowJob]]:
    """The jobs by the longest way that leads to them; jobs of a circle, made by hand, are left out."""
    depth: dict[str, int] = {}
    left = list(jobs)
    while left:
        ready = [job for job in left if all(need in depth for need in job.needs)]
        if not ready:
            break
        for job in ready:
            depth[job.name] = 1 + max((depth[need] for need in job.needs), default=-1)
        left = [job for job in left if job.name not in depth]
    result: list[list[WorkflowJob]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for job in jobs:
        if job.name in depth:
            result[depth[job.name]].append(job)
    return result


def draw(jobs: Sequence[WorkflowJob], rows: Mapping[str, JobRow]) -> Markup | None:
    """The graph; None if it has too many jobs or none. `rows`: the jobs that are there, by name."""
    drawn = columns(jobs)
    if not drawn or len(jobs) > MOST:
        return None
    tallest = max(map(len, drawn))
    high = tallest * (TALL + DOWN) + DOWN
    wide = len(drawn) * (BOX + ACROSS) - ACROSS + 8
    at: dict[str, tuple[float, float]] = {}
    for x, column in enumerate(drawn):
        top = (high - len(column) * (TALL + DOWN) + DOWN) / 2
        for y, job in enumerate(column):
            at[job.name] = (4 + x * (BOX + ACROSS), top + y * (TALL + DOWN))
    spawned = Counter(name.partition("/")[0] for name in rows if "/" in name)
    lines = [_edge(at[need], at[job.name]) for job in jobs if job.name in at for need in job.needs]
    boxes = [_box(job, rows.get(job.name), at[job.name], spawned[job.name]) for job in jobs if job.name in at]
    picture = el(
        "svg",
        lines,
        boxes,
        width=wide,
        height=high,
        viewBox=f"0 0 {wide} {high}",
        role="group",
        aria_label=f"Graph of {len(jobs)} jobs; the table below says the same",
    )
    return el("div", picture, class_="graph", tabindex="0", role="region", aria_label="Graph")


def _edge(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    x1, y1, x2, y2 = start[0] + BOX, start[1] + TALL / 2, end[0], end[1] + TALL / 2
    bend = max(20.0, (x2 - x1) / 2)
    return el(
        "path",
        d=f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}",
        class_="edge",
    )


def _box(job: WorkflowJob, row: JobRow | None, at: tuple[float, float], spawned: int) -> Markup:
    state = "not yet" if row is None else _NAMES.get(Status(row.status), str(row.status))
    tone = "later" if row is None else _TONES.get(Status(row.status), "mute")
    more = f" +{spawned} spawned" if spawned else ""
    inner = [
        el("rect", width=BOX, height=TALL, rx=8),
        el("text", _cut(job.name), x=12, y=19, class_="name"),
        el("text", _cut(f"{state}{more} · {job.handler}", LETTERS + 4), x=12, y=36, class_="sub"),
        el("title", f"{job.name}: {state}{more}, handler {job.handler}"),
    ]
    group = el("g", inner, class_=f"box {tone}", transform=f"translate({at[0]:g} {at[1]:g})")
    if row is None:
        return group
    return el("a", group, href=path("ui", "jobs", id_text(row.id)), aria_label=f"{job.name}, {state}")


def _cut(text: str, letters: int = LETTERS) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
