"""How jobs look to a person."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from workerd.cli.terminal import bold, harmless, line, pairs, put, seconds_text, size_text, table

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
        return signal_name(attempt["exit_signal"])
    if attempt.get("exit_code") is not None:
        return f"exit status {attempt['exit_code']}"
    return None


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


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
