"""`job log`: what an attempt printed and logged, kept with it or live."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Annotated

import typer

from workerd.cli.options import ConfigPath, JobId
from workerd.cli.output import Document, notify
from workerd.cli.session import CommandSession, open_session
from workerd.errors import NotFound
from workerd.job import AttemptRef
from workerd.operations import jobs, logs
from workerd.runtime.generations import ask_all
from workerd.text import harmless

FOLLOW_INTERVAL_S = 0.3

Attempt = Annotated[
    int | None, typer.Option("--attempt", metavar="N", min=1, help="Of this attempt; else the newest.")
]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Print what a running job prints, until it ends; on its node.")
]


def log(job_id: JobId, attempt: Attempt = None, follow: Follow = False, c: ConfigPath = None) -> None:
    """Print what an attempt printed and logged; with --follow, live."""
    with open_session(c) as session:
        live = _ask(session, AttemptRef(job_id, attempt or 0), 0)
        if live is None or live["ended"]:
            _print_kept(session, job_id, attempt, live)
            return
        _print(live["text"])
        if follow:
            _follow(session, AttemptRef(job_id, live["attempt"]), live)
        else:
            notify(f"Attempt {live['attempt']} is running; --follow prints its output live.")


def _print_kept(session: CommandSession, job_id: bytes, attempt: int | None, live: Document | None) -> None:
    """The log in the store; `live`: of an attempt that has just ended, and may not be kept."""
    try:
        text = session.read(partial(logs.get, job_id=job_id, attempt=attempt)).text
    except NotFound:
        if live is None:
            raise
        text = live["text"]
    _print(text if not text or text.endswith("\n") else text + "\n")


def _follow(session: CommandSession, ref: AttemptRef, part: Document) -> None:
    """Print the following parts until the last."""
    while not part["ended"]:
        time.sleep(FOLLOW_INTERVAL_S)
        start = part["until"]
        following = _ask(session, ref, start)
        if following is None:
            _print_end(session, ref)
            return
        part = following
        if part["skipped"]:
            notify(f"… {part['skipped']:,} bytes came too fast to be shown …")
        _print(part["text"])
    _print_end(session, ref)


def _print_end(session: CommandSession, ref: AttemptRef) -> None:
    """Say how it ended; the outcome is written a moment after the last line."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        job = session.read(partial(jobs.get, job_id=ref.id))
        attempt = next(a for a in job["attempts"] if a["attempt"] == ref.attempt)
        if attempt["status"] != "inprogress":
            error = f": {attempt['error']}" if attempt["error"] else ""
            notify(f"Attempt {ref.attempt} ended as {attempt['status']}, {attempt['reason']}{error}")
            return
        time.sleep(FOLLOW_INTERVAL_S)
    notify(f"Attempt {ref.attempt} is no longer running here.")


def _ask(session: CommandSession, ref: AttemptRef, start: int) -> Document | None:
    """What this host's daemon has of a running attempt; None if it does not run here."""
    question = logs.question(ref, start)
    return next((answer for _, answer in ask_all(session.config.node, question) if answer.get("found")), None)


def _print(text: str) -> None:
    sys.stdout.write(harmless(text))
    sys.stdout.flush()
