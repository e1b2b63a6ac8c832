"""`why ID`: what a job waits for, or how it ended."""

from __future__ import annotations

from workerd.cli.errors import CommandFailed
from workerd.cli.options import AsJson, ConfigPath, JobId
from workerd.cli.output import Document, print_heading, print_json, print_text
from workerd.cli.session import open_session
from workerd.cli.status import ask_supervisor
from workerd.cli.views import print_attempts
from workerd.config.model import Config
from workerd.job import Status
from workerd.operations.why import explain

MAX_STACK_LINES = 40


def why(job_id: JobId, c: ConfigPath = None, json: AsJson = False) -> None:
    """Explain what a job waits for, or how it ended."""
    with open_session(c) as session:
        pools = _local_pools(session.config)
        job, reasons = session.read(lambda tx: explain(tx, session.config, job_id, pools))
    if json:
        print_json({"id": job["id"], "status": job["status"], "why": reasons, "job": job})
        return
    for reason in reasons:
        print_text(reason)
    print_attempts(job["attempts"])
    stack = next((a["stack"] for a in reversed(job["attempts"]) if a["stack"]), None)
    if stack is not None and job["status"] != Status.COMPLETED:
        print_heading("Its stack:")
        for text in str(stack).rstrip().splitlines()[-MAX_STACK_LINES:]:
            print_text(text)


def _local_pools(config: Config) -> dict[str, Document]:
    """The pools of this host's daemon, none if it does not answer."""
    try:
        return ask_supervisor(config).get("pools") or {}
    except CommandFailed:
        return {}
