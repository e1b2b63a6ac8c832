"""How jobs, attempts and requests are printed for people."""

from __future__ import annotations

import base64
import shutil
import sys
import textwrap
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from workerd.cli.output import (
    Document,
    bold,
    is_terminal,
    notify,
    print_fields,
    print_heading,
    print_table,
    print_text,
)
from workerd.clock import SECOND, from_rfc3339, now_us
from workerd.config.graph import depths
from workerd.documents import request_title
from workerd.operations.logs import LogTail
from workerd.text import exit_text, harmless, line, plural, seconds_text, size_text
from workerd.workflow import Graph, Stages

MAX_PAYLOAD_CHARACTERS = 2000
_FIELDS = (
    "handler", "status", "reason", "attempt", "success", "priority", "unique_key", "group", "request_id",
    "step", "name", "run_at", "expires_at", "created_at", "claimed_at", "started_at", "finished_at",
    "ingested_at", "node", "pid", "exit_signal", "exit_code", "error", "error_class", "fingerprint",
)  # fmt: skip


def print_job_table(jobs: Iterable[Document]) -> None:
    """Print one line for each job."""
    print_table(
        ["id", "handler", "status", "reason", "attempt", "created", "took", "error"],
        [
            [job["id"], job["handler"], job["status"], job["reason"], job["attempt"],
             second(job["created_at"]), run_time(job["run_us"]), job["error"]]
            for job in jobs
        ],
    )  # fmt: skip


def second(moment: str | None) -> str | None:
    """A time in RFC 3339 cut to its second, for columns."""
    return f"{moment[:19]}Z" if moment else None


def run_time(us: int | None) -> str | None:
    """Microseconds as a duration for people."""
    return None if us is None else seconds_text(us / SECOND)


def print_job(job: Document) -> None:
    """Print everything about a job, one field a line, then its attempts and the last stack."""
    fields: list[tuple[str, object]] = [("id", job["id"])]
    fields += [(name, job.get(name)) for name in _FIELDS]
    fields += [
        ("progress", progress_text(job["progress"], job["note"])),
        ("took", run_time(job["run_us"])),
        ("cpu", run_time(job["cpu_us"])),
        ("memory", None if job["max_rss_kib"] is None else size_text(job["max_rss_kib"] * 1024)),
        ("vars", _json_text(job["vars"])),
        ("meta", None if job["meta"] is None else _json_text(job["meta"])),
        ("state", None if job["state"] is None else _json_text(job["state"])),
        ("payload", _payload_text(job) if job["complete"] and job["success"] else None),
    ]
    print_fields(fields)
    print_attempts(job["attempts"])
    if job["stack"]:
        print_heading("Stack of the last attempt:")
        print_text(str(job["stack"]).rstrip())


def print_log(log: LogTail) -> None:
    """Print the last lines that an attempt printed."""
    if log.lines:
        print_heading(f"The last lines of the log of attempt {log.attempt}; `workerd job log` prints all:")
        for text in log.lines:
            print_text(text)


def print_attempts(attempts: Sequence[Document]) -> None:
    """Print one line for each attempt if there was more than one."""
    if len(attempts) < 2:
        return
    print_text()
    print_table(
        ["attempt", "status", "reason", "node", "started", "took", "exit", "error"],
        [
            [a["attempt"], a["status"], a["reason"], a["node"], second(a["started_at"]),
             run_time(a["run_us"]), exit_of(a), a["error"]]
            for a in attempts
        ],
    )  # fmt: skip


def exit_of(attempt: Document) -> str | None:
    """How the worker process ended, `SIGSEGV` or `exit status 3`, if it did."""
    if attempt["exit_signal"] is not None:
        return exit_text(-attempt["exit_signal"])
    if attempt["exit_code"] is not None:
        return exit_text(attempt["exit_code"])
    return None


def progress_text(progress: float | None, note: str | None) -> str | None:
    """`40 %, resizing`."""
    share = f"{progress * 100:.0f} %" if progress is not None else ""
    return ", ".join(filter(None, [share, note])) or None


def _payload_text(job: Document) -> str:
    """The payload as one line of JSON, cut if it is long; of bytes only their number."""
    if job["payload_base64"] is not None:
        return f"{len(base64.b64decode(job['payload_base64']))} bytes"
    text = _json_text(job["payload"])
    if len(text) <= MAX_PAYLOAD_CHARACTERS:
        return text
    return f"{text[:MAX_PAYLOAD_CHARACTERS]}… ({len(text):,} characters in all; --json prints them)"


def print_payload(job: Document) -> None:
    """Print the payload alone: bytes as they are, but not on a terminal; JSON as JSON."""
    if job["payload_base64"] is None:
        print(line(_json_text(job["payload"])))
        return
    data = base64.b64decode(job["payload_base64"])
    if sys.stdout.isatty():
        notify(
            f"The payload of job {job['id']} is {plural(len(data), 'byte')}, which are not written to a "
            f"terminal: redirect the output to a file, or use --json for base64."
        )
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _json_text(value: Any) -> str:
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
_ASCII_MARKS = {
    "completed": "+",
    "failure": "x",
    "cancelled": "-",
    "inprogress": ">",
    "new": ".",
    "scheduled": ".",
    "": " ",
}
_JOB_INDENT = "  "
_SPAWNED_INDENT = "    "
_PIPE_WIDTH = 1 << 16
"""Columns where no terminal is: an error stays one line, so that `grep` finds it."""


def print_request_table(requests: Iterable[Document]) -> None:
    """Print one line for each request."""
    print_table(
        ["id", "workflow", "status", "done", "failed", "total", "created", "completed", "error"],
        [
            [request["id"], request_title(request), request["status"],
             request["done"], request["failed"], request["total"],
             second(request["created_at"]), second(request["completed_at"]), request["error"]]
            for request in requests
        ],
    )  # fmt: skip


def print_request(request: Document, graph: Graph | None) -> None:
    """Print everything about a request, then the graph of its jobs."""
    completed = request["completed_at"]
    took = (from_rfc3339(completed) if completed else now_us()) - from_rfc3339(request["created_at"])
    print_fields(
        [
            ("id", request["id"]),
            ("workflow", request["workflow"]),
            ("name", request["name"]),
            ("status", request["status"]),
            ("progress", f"{request['done']} done, {request['failed']} failed, {request['total']} total"),
            ("created", second(request["created_at"])),
            ("completed", second(completed)),
            ("took" if completed else "since", run_time(max(0, took))),
            ("params", _json_text(request["params"])),
            ("extras", _json_text(request["extras"])),
            ("error", request["error"]),
        ]
    )
    print_text()
    if graph is None and not request["jobs"]:
        print_text("No job of it has been inserted yet.")
    for text in draw_graph(graph, request["jobs"]):
        print(text)


def print_results(results: Document) -> None:
    """Print what the last jobs of a request returned, one a line, whole."""
    if results:
        print_heading("Result:")
        print_fields((name, _json_text(value)) for name, value in results.items())


def draw_graph(graph: Graph | None, jobs: Sequence[Document]) -> list[str]:
    """The lines of the graph: its levels in order, under each its jobs with status and needs.

    Below them the jobs of a batch, then those of `then` and of `finally`, the present one last.
    """
    rows = {job["name"] or job["handler"]: job for job in jobs}
    nodes = {job.name: job for job in graph.all_jobs} if graph else {}
    spawned: dict[str, list[str]] = {}
    for name in sorted(rows):
        for cut in (n for n, letter in enumerate(name) if letter == "/"):
            spawned.setdefault(name[:cut], []).append(name)
    width = max((len(line(name)) + len(_indent(name, nodes)) for name in {*nodes, *rows}), default=0)
    lines: list[str] = []
    for title, names in _sections(graph, list(rows)):
        lines.append(bold(title))
        for name in names:
            needs = nodes[name].needs if graph is not None and name in nodes and not graph.steps else ()
            lines += _job_lines(name, width, rows.pop(name, None), _JOB_INDENT, needs)
            for child in spawned.get(name, ()):
                if child in rows:
                    lines += _job_lines(child, width, rows.pop(child), _SPAWNED_INDENT)
    for name, job in rows.items():
        lines += _job_lines(name, width, job, _JOB_INDENT)
    return lines


def _sections(graph: Graph | None, rows: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The titles of a graph's parts and the names of their jobs."""
    if graph is None:
        return
    depth = depths({job.name: job.needs for job in graph.jobs})
    unreachable = max(depth.values(), default=-1) + 1  # in a cycle, which only other programs write
    levels: dict[int, list[str]] = {}
    for job in graph.jobs:
        levels.setdefault(depth.get(job.name, unreachable), []).append(job.name)
    for level in sorted(levels):
        yield _title(graph, level), levels[level]
    parts = Stages(graph)
    known = {job.name for job in graph.all_jobs}
    others = [name for name in rows if name not in known and "/" not in name]
    arrow = "" if not levels and not graph.members else _arrow()
    if graph.members:
        yield "jobs", [name for name in others if parts.of(name) == "main"]
    if graph.then:
        yield f"{arrow}then", [job.name for job in graph.then]
    if past := [name for name in others if parts.of(name) == "past"]:
        yield f"{arrow}finally, before it was reopened", past
    if graph.final:
        yield f"{arrow}finally", [job.name for job in graph.final]


def _arrow() -> str:
    return "↓ " if _is_unicode() else "v "


def _indent(name: str, nodes: Container[str]) -> str:
    """A job that another one spawned is drawn below it, further to the right."""
    return _SPAWNED_INDENT if name not in nodes and "/" in name else _JOB_INDENT


def _title(graph: Graph | None, level: int) -> str:
    arrow = "" if level == 0 else _arrow()
    if graph is not None and level < len(graph.steps):
        return f"{arrow}step {level}: {line(graph.steps[level])}"
    return f"{arrow}level {level}"


def _job_lines(
    name: str, width: int, job: Document | None, indent: str, needs: Sequence[str] = ()
) -> Iterator[str]:
    """The job's line, and below it its error; `width`: columns of the longest name with its indent."""
    status = job["status"] if job is not None else ""
    marks = _MARKS if _is_unicode() else _ASCII_MARKS
    label = line(name).ljust(width - len(indent))
    words = [marks.get(status, "?"), label, (status or "not started").ljust(10)]
    if job is not None:
        words.append(_run_time(job).rjust(8))
        words.append(job["id"])
        if job["attempt"] > 1:
            words.append(f"attempt {job['attempt']}")
    if needs:
        words.append(f"{'←' if _is_unicode() else '<-'} {', '.join(map(line, needs))}")
    yield from _wrapped(indent + " ".join(words).rstrip(), indent)
    if job is not None and job["error"]:
        yield from _wrapped(f"{indent}    {line(job['error'])}", indent)


def _wrapped(text: str, indent: str) -> list[str]:
    """The line, continued on further ones where the terminal is too narrow; ids stay whole."""
    room = shutil.get_terminal_size().columns if is_terminal() else _PIPE_WIDTH
    lines = textwrap.wrap(
        text,
        max(room, 40),
        subsequent_indent=f"{indent}    ",
        break_on_hyphens=False,
        break_long_words=False,
        replace_whitespace=False,
    )
    return lines or [text]


def _run_time(job: Document) -> str:
    us = job["run_us"]
    if us is None and job["started_at"] is not None and job["status"] == "inprogress":
        us = max(0, now_us() - from_rfc3339(job["started_at"]))
    return run_time(us) or ""


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
