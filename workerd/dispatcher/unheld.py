"""What becomes of claims that nobody holds: given back, or lost. The only endings made here."""

from __future__ import annotations

from workerd.job import Claim, Status
from workerd.outcome import Outcome, Reason
from workerd.retry import lost
from workerd.store.jobs import HeldRow

UNSENDABLE = "the vars (with params, extras and payloads that it needs) are too long to reach a worker"


def give_back(row: HeldRow) -> Outcome:
    """Nothing can have run: the row becomes `new` again, no attempt is spent."""
    return Outcome(
        id=row.id,
        attempt=row.attempt,
        claimed_at=row.claimed_at,
        handler=row.handler,
        status=Status.NEW,
        request_id=row.request_id,
        unique_key=row.unique_key,
    )


def lose(row: HeldRow, why: str, node_id: bytes | None = None) -> Outcome:
    """It may have run. `node_id`: the dead incarnation that claimed it, if it was not this one."""
    status, following = lost(row)
    return Outcome(
        id=row.id,
        attempt=row.attempt,
        claimed_at=row.claimed_at,
        handler=row.handler,
        status=status,
        reason=Reason.LOST,
        success=False,
        error=why,
        next=following,
        node_id=node_id,
        request_id=row.request_id,
        step=row.step,
        name=row.name,
        unique_key=row.unique_key,
    )


def refuse(claim: Claim) -> Outcome:
    """It can never reach a worker."""
    return Outcome(
        id=claim.id,
        attempt=claim.attempt,
        claimed_at=claim.claimed_at,
        handler=claim.handler,
        status=Status.FAILURE,
        reason=Reason.FAILURE,
        success=False,
        error=UNSENDABLE,
        request_id=claim.request_id,
        step=claim.step,
        name=claim.name,
        unique_key=claim.unique_key,
    )
