"""`why ID`: what a job or a request waits for, or how it ended."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from workerd.cli.errors import CommandFailed
from workerd.cli.options import AsJson, ConfigPath, Reveal, parse_identity
from workerd.cli.output import Document, print_heading, print_json, print_text
from workerd.cli.session import CommandSession, open_session
from workerd.cli.status import ask_supervisor
from workerd.cli.views import print_attempts, print_log
from workerd.config.model import Config
from workerd.errors import NotFound
from workerd.job import Status, id_text
from workerd.operations import logs
from workerd.operations.why import explain, explain_request

MAX_STACK_LINES = 40


def why(
    subject: Annotated[
        bytes, typer.Argument(metavar="ID", help="Id of a job or a request.", parser=parse_identity)
    ],
    reveal: Reveal = False,
    c: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Explain what a job or request waits for, or how it ended."""
    with open_session(c) as session:
        try:
            # First: the run of a recurring workflow has a job row with the same id.
            request, reasons = session.look_up(
                lambda tx, rules: explain_request(tx, session.config, subject, rules),
                id_text(subject),
                reveal=reveal,
            )
        except NotFound:
            _why_job(session, subject, json, reveal)
            return
    if json:
        print_json({"id": request["id"], "status": request["status"], "why": reasons, "request": request})
        return
    for reason in reasons:
        print_text(reason)


def _why_job(session: CommandSession, job_id: bytes, json: bool, reveal: bool) -> None:
    pools = _local_pools(session.config)
    try:
        job, reasons = session.look_up(
            lambda tx, rules: explain(tx, session.config, job_id, pools, rules),
            id_text(job_id),
            reveal=reveal,
        )
    except NotFound:
        raise NotFound(
            "Neither a job nor a request has this id. `workerd job list` and `workerd request list` list "
            "existing ones."
        ) from None
    log = session.read(partial(logs.tail, job_id=job_id))
    if json:
        answer = {"id": job["id"], "status": job["status"], "why": reasons}
        print_json({**answer, "log": log.lines, "log_attempt": log.attempt, "job": job})
        return
    for reason in reasons:
        print_text(reason)
    print_attempts(job["attempts"])
    stack = next((a["stack"] for a in reversed(job["attempts"]) if a["stack"]), None)
    if stack is not None and job["status"] != Status.COMPLETED:
        print_heading("Its stack:")
        for text in str(stack).rstrip().splitlines()[-MAX_STACK_LINES:]:
            print_text(text)
    print_log(log)


def _local_pools(config: Config) -> dict[str, Document]:
    """The pools of this host's daemon, none if it does not answer."""
    try:
        return ask_supervisor(config).get("pools") or {}
    except CommandFailed:
        return {}
