"""Everything that can be done with jobs, by name; each does one thing in the caller's transaction."""

from __future__ import annotations

from workerd.store.acts import cancel, retry
from workerd.store.claiming import (
    ClaimBatch,
    Cursor,
    NodeIdent,
    PeekResult,
    Promoted,
    claim,
    peek,
    promote_due,
)
from workerd.store.closing import close, ingested, progress
from workerd.store.holding import HeldRow, held
from workerd.store.inserting import Inserted, NewJob, insert

__all__ = [
    "ClaimBatch",
    "Cursor",
    "HeldRow",
    "Inserted",
    "NewJob",
    "NodeIdent",
    "PeekResult",
    "Promoted",
    "cancel",
    "claim",
    "close",
    "held",
    "ingested",
    "insert",
    "peek",
    "progress",
    "promote_due",
    "retry",
]
