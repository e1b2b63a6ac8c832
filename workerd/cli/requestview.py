"""How requests look to a person: the graph, level by level, with the state of every job."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from workerd.cli.jobview import microseconds, second
from workerd.cli.terminal import bold, is_terminal, line, pairs, put, seconds_text, table
from workerd.clock import SECOND, now_us, to_rfc3339

if TYPE_CHECKING:
    from workerd.store.rows import JobRow, RequestRow
    from workerd.workflow import Graph

_MARKS = {
    "completed": "✓",
    "failure": "✗",
    "cancelled": "–",
    "inprogress": "▶",
    "new": "·",
    "scheduled": "·",
    "": " ",
}
_PLAIN_MARKS = {
    "completed": "+",
    "failure": "x",
    "cancelled": "-",
    "inprogress": ">",
    "new": ".",
    "scheduled": ".",
    "": " ",
}
_JOB = "  "
_SPAWNED = "    "
_UNBROKEN = 1 << 16
"""Columns where nobody looks: an error stays one line there, for whoever searches it."""


def table_of_requests(requests: Iterable[RequestRow]) -> None:
    """One line a request."""
    table(
        ["id", "workflow", "status", "step", "created", "completed", "error"],
        [
            [_id(row.id), row.workflow, row.status, row.step,
             _second(row.created_at), _second(row.completed_at), row.error]
            for row in requests
        ],
    )  # fmt: skip


def _id(key: bytes) -> str:
    from workerd.job import id_text

    return id_text(key)


def _second(us: int | None) -> str | None:
    return second(to_rfc3339(us)) if us else None


def show_request(row: RequestRow, jobs: Sequence[JobRow]) -> None:
    """All there is to know of a request, then its graph."""
    ended = row.completed_at or now_us()
    pairs(
        [
            ("id", _id(row.id)),
            ("workflow", row.workflow),
            ("status", row.status),
            ("created", _second(row.created_at)),
            ("completed", _second(row.completed_at)),
            ("took" if row.completed_at else "since", seconds_text(max(0, ended - row.created_at) / SECOND)),
            ("params", row.params.decode(errors="replace")),
            ("extras", row.extras.decode(errors="replace")),
            ("error", row.error),
        ]
    )
    graph = _graph(row)
    if graph is None and not jobs:
        put()
        put("No job of it has been inserted yet.")
        return
    put()
    for text in drawing(graph, jobs):
        print(text)


def _graph(row: RequestRow) -> Graph | None:
    from workerd.workflow import decode

    try:
        return decode(row.steps) if row.steps else None
    except ValueError:
        return None


def drawing(graph: Graph | None, jobs: Sequence[JobRow]) -> list[str]:
    """The lines of the graph: levels from the first to the last, under each its jobs and what they need."""
    rows = {job.name or job.handler: job for job in jobs}
    nodes = {job.name: job for job in graph.jobs} if graph else {}
    levels: dict[int, list[str]] = {}
    for name in nodes:
        levels.setdefault(_depth(name, {n: j.needs for n, j in nodes.items()}), []).append(name)
    width = max((len(line(name)) + _indent(name, nodes) - len(_JOB) for name in {*nodes, *rows}), default=0)
    lines: list[str] = []
    for level in sorted(levels):
        lines.append(bold(_title(graph, level)))
        for name in levels[level]:
            needs = nodes[name].needs if graph is not None and not graph.steps else ()
            lines += _job_lines(name, width, rows.pop(name, None), _JOB, needs)
            for child in sorted(n for n in rows if n.startswith(f"{name}/")):
                lines += _job_lines(child, width, rows.pop(child), _SPAWNED)
    for name, job in rows.items():
        lines += _job_lines(name, width, job, _JOB)
    return lines


def _indent(name: str, nodes: Container[str]) -> int:
    """How far to the right a job stands: what another one spawned stands below it."""
    return len(_SPAWNED if name not in nodes and "/" in name else _JOB)


def _title(graph: Graph | None, level: int) -> str:
    arrow = "" if level == 0 else ("↓ " if _unicode() else "v ")
    if graph is not None and level < len(graph.steps):
        return f"{arrow}step {level}: {line(graph.steps[level])}"
    return f"{arrow}level {level}"


def _depth(name: str, needs: dict[str, tuple[str, ...]]) -> int:
    """The longest way from a job that needs nothing; the graph was checked to have no cycle."""
    depth, front = 0, set(needs[name])
    while front and depth < len(needs):
        depth += 1
        front = {need for job in front for need in needs.get(job, ())}
    return depth


def _job_lines(
    name: str, width: int, job: JobRow | None, indent: str, needs: Sequence[str] = ()
) -> Iterator[str]:
    """The job's line, and below it its error; `width`: columns of the longest name with its indent."""
    status = job.status if job is not None else ""
    marks = _MARKS if _unicode() else _PLAIN_MARKS
    label = line(name).ljust(width + len(_JOB) - len(indent))
    words = [marks.get(status, "?"), label, (status or "not begun").ljust(10)]
    if job is not None:
        words.append(_time_of(job).rjust(8))
        if job.attempt > 1:
            words.append(f"attempt {job.attempt}")
    if needs:
        words.append(f"{'←' if _unicode() else '<-'} {', '.join(map(line, needs))}")
    yield indent + " ".join(words).rstrip()
    if job is not None and job.error:
        room = shutil.get_terminal_size().columns if is_terminal() else _UNBROKEN
        margin = indent + "    "
        yield from textwrap.wrap(
            line(job.error), max(room, 40), initial_indent=margin, subsequent_indent=margin
        )


def _time_of(job: JobRow) -> str:
    if job.run_us is not None:
        return microseconds(job.run_us) or ""
    if job.started_at is not None and job.status == "inprogress":
        return seconds_text(max(0, now_us() - job.started_at) / SECOND) or ""
    return ""


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
