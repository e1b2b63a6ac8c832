"""How jobs and requests look in a terminal."""

from __future__ import annotations

import base64
import shutil
import sys
import textwrap
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from workerd.cli.output import bold, is_terminal, pairs, put, table
from workerd.clock import SECOND, now_us, to_rfc3339
from workerd.text import exit_text, harmless, line, seconds_text, size_text

if TYPE_CHECKING:
    from workerd.store.columns import JobRow, RequestRow
    from workerd.workflow import Graph


Document = dict[str, Any]

PAYLOAD_SHOWN = 2000
_FACTS = (
    "handler", "status", "reason", "attempt", "success", "priority", "unique_key", "request_id", "step",
    "name", "run_at", "created_at", "claimed_at", "started_at", "finished_at", "ingested_at", "node", "pid",
    "exit_signal", "exit_code", "error",
)  # fmt: skip


def table_of_jobs(jobs: list[Document]) -> None:
    """One line a job."""
    table(
        ["id", "handler", "status", "reason", "attempt", "created", "took", "error"],
        [
            [job["id"], job["handler"], job["status"], job["reason"], job["attempt"],
             second(job["created_at"]), microseconds(job["run_us"]), job["error"]]
            for job in jobs
        ],
    )  # fmt: skip


def second(moment: str | None) -> str | None:
    """A time cut to its second, for columns."""
    return f"{moment[:19]}Z" if moment else None


def microseconds(value: int | None) -> str | None:
    return None if value is None else seconds_text(value / 1e6)


def show_job(job: Document) -> None:
    """All there is to know of a job, one fact a line, then its attempts and the newest stack."""
    facts: list[tuple[str, object]] = [("id", job["id"])]
    facts += [(name, job.get(name)) for name in _FACTS]
    if job.get("progress") is not None or job.get("note"):
        facts.append(("progress", progress_text(job)))
    facts += [
        ("took", microseconds(job["run_us"])),
        ("cpu", microseconds(job["cpu_us"])),
        ("memory", None if job["max_rss_kib"] is None else size_text(job["max_rss_kib"] * 1024)),
        ("vars", _json(job["vars"])),
        ("meta", None if job["meta"] is None else _json(job["meta"])),
        ("payload", payload_text(job, PAYLOAD_SHOWN) if job["complete"] and job["success"] else None),
    ]
    pairs(facts)
    show_attempts(job.get("attempts") or [])
    if job.get("stack"):
        put()
        print(bold("Stack of the last attempt:"))
        put(str(job["stack"]).rstrip())


def show_attempts(attempts: list[Document]) -> None:
    """One line an attempt, if there was more than one."""
    if len(attempts) < 2:
        return
    put()
    table(
        ["attempt", "status", "reason", "node", "started", "took", "ended by", "error"],
        [
            [a["attempt"], a["status"], a["reason"], a["node"], second(a["started_at"]),
             microseconds(a["run_us"]), death(a), a["error"]]
            for a in attempts
        ],
    )  # fmt: skip


def death(attempt: Document) -> str | None:
    """`SIGSEGV` or `exit status 3`, if the process died."""
    if attempt.get("exit_signal") is not None:
        return exit_text(-attempt["exit_signal"])
    if attempt.get("exit_code") is not None:
        return exit_text(attempt["exit_code"])
    return None


def progress_text(job: Document) -> str:
    """`40 %, resizing`."""
    share = f"{job['progress'] * 100:.0f} %" if job.get("progress") is not None else ""
    return ", ".join(filter(None, [share, job.get("note") or ""]))


def payload_text(job: Document, most: int | None = None) -> str:
    """The payload as one line of JSON; bytes by their number, if cut."""
    if job.get("payload_base64") is not None:
        return f"{len(base64.b64decode(job['payload_base64']))} bytes"
    text = _json(job["payload"])
    return text if most is None or len(text) <= most else f"{text[:most]}…"


def put_payload(job: Document) -> None:
    """The payload alone: bytes as they are, JSON as JSON."""
    import sys

    if job.get("payload_base64") is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(base64.b64decode(job["payload_base64"]))
        sys.stdout.buffer.flush()
        return
    print(line(_json(job["payload"])))


def _json(value: Any) -> str:
    return harmless(msgspec.json.encode(value).decode())


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
