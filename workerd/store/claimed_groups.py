"""The groups of claimed jobs that no program gave one: filled from their vars by the handler's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workerd.errors import InvalidValue
from workerd.group import GroupTemplate
from workerd.job import AttemptRef, Claim
from workerd.outcome import failed
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.claims import ClaimBatch


def fill(tx: Tx, batch: ClaimBatch, template: GroupTemplate) -> ClaimBatch:
    """The batch with groups for its claims that have none, which are written; in the claim's transaction.

    A claim whose vars do not give a group becomes an outcome among `broken`.
    """
    without = _without_group(tx, [claim.ref for claim in batch.claims])
    groups: dict[AttemptRef, str] = {}
    broken = list(batch.broken)
    claims: list[Claim] = []
    for claim in batch.claims:
        if claim.ref in without:
            try:
                groups[claim.ref] = template.fill(claim.vars)
            except InvalidValue as error:
                broken.append(failed(claim, f"{error}; correct the vars, or enqueue it with a group."))
                continue
        claims.append(claim)
    write(tx, groups)
    return batch._replace(claims=claims, broken=broken)


def _without_group(tx: Tx, refs: Sequence[AttemptRef]) -> set[AttemptRef]:
    found: set[AttemptRef] = set()
    for part in columns.chunks(refs):
        sql = f"SELECT id, attempt FROM workerd_jobs WHERE ({columns.keys(part)}) AND group_key IS NULL"
        found.update(AttemptRef(*row) for row in tx.query(sql))
    return found


def write(tx: Tx, groups: Mapping[AttemptRef, str]) -> None:
    """Write the groups of these attempts, which the transaction has locked."""
    for part in columns.chunks(list(groups.items())):
        cases = " ".join([f"WHEN x'{ref.id.hex()}' THEN %s" for ref, _ in part])
        tx.execute(
            f"UPDATE workerd_jobs SET group_key = CASE id {cases} END"
            f" WHERE {columns.keys([ref for ref, _ in part])}",
            [group for _, group in part],
        )
