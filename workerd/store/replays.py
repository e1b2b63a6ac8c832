"""Read an attempt as a claim, to run it once more beside the daemon; nothing is written."""

from __future__ import annotations

import time

from workerd.errors import NotFound, UnreadableRow
from workerd.job import AttemptRef, Claim
from workerd.store import workflow_inputs
from workerd.store.base import Tx
from workerd.store.claims import MAX_JOB_BYTES
from workerd.store.columns import jobs_by_key


def claim_of(tx: Tx, job_id: bytes, attempt: int | None) -> Claim:
    """The attempt, None for the newest, with all that running it takes. Raises NotFound, UnreadableRow."""
    newest = tx.one("SELECT MAX(attempt) FROM workerd_jobs WHERE id = %s", (job_id,))
    if newest is None or newest[0] is None:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    ref = AttemptRef(job_id, newest[0] if attempt is None else attempt)
    row = jobs_by_key(tx, [ref], most=MAX_JOB_BYTES).get(ref)
    if row is None:
        raise NotFound(f"The job has no attempt {ref.attempt}; its newest is {newest[0]}.")
    if row.vars is None:
        raise UnreadableRow(f"the vars of attempt {ref.attempt} are not there, or too long to be read")
    state = tx.one(
        f"SELECT state FROM workerd_jobs WHERE id = %s AND attempt = %s"
        f" AND COALESCE({tx.dialect.byte_length('state')}, 0) <= {MAX_JOB_BYTES}",
        ref,
    )
    claim = Claim(
        id=job_id,
        attempt=ref.attempt,
        claimed_at=row.claimed_at or tx.now,
        mono=time.monotonic_ns(),
        handler=row.handler,
        vars=row.vars,
        run_at=row.run_at or tx.now,
        meta=row.meta,
        deadline_ms=row.deadline_ms,
        max_attempts=row.max_attempts,
        failures=row.failures,
        crashes=row.crashes,
        losses=row.losses,
        unique_key=row.unique_key,
        request_id=row.request_id,
        step=row.step,
        name=row.name,
        state=state[0] if state is not None else None,
    )
    return workflow_inputs.inputs_of(tx, claim)
