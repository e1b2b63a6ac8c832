"""The ranges of an index in which the jobs of a filter are: its branches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from workerd.job import ENDED, Status
from workerd.job_filter import JobFilter
from workerd.store.base import Tx
from workerd.store.errors import handlers_of
from workerd.store.queries import MAX_GROUPS, groups

CURRENT = (*(s for s in Status if s is not Status.RETRY),)
"""The statuses that the newest attempt of a job can have."""


class Branch(NamedTuple):
    """Rows of one status; `where`: a condition on `j`.

    `in_order`: they are one range of the index `workerd_holder`, in the order of `run_at`. `ended`: whether
    they have ended.
    """

    where: str
    params: list[object]
    ended: bool
    index_name: str = "workerd_holder"
    in_order: bool = True


def branches(tx: Tx, wanted: JobFilter, states: Collection[Status] = CURRENT) -> list[Branch]:
    """The branches of the status that is wanted, or else of `states`."""
    chosen = [Status(wanted.status)] if wanted.status is not None else [s for s in CURRENT if s in states]
    if wanted.request is not None:
        return [_of_request(state, wanted.request, wanted.handler) for state in chosen]
    # Failures of one error are those of few handlers.
    handlers: list[str | None] = [wanted.handler]
    if wanted.error is not None and wanted.handler is None:
        handlers = [*handlers_of(tx, wanted.error)] or handlers
    return [branch for handler in handlers for branch in _of_handler(tx, chosen, handler)]


def _of_request(state: Status, request: bytes, handler: str | None) -> Branch:
    where, params = "j.request_id = %s AND j.status = %s", [request, str(state)]
    if handler is not None:
        where, params = f"{where} AND j.handler = %s", [*params, handler]
    return Branch(where, [*params], _has_ended(state), "workerd_request", in_order=False)


def _of_handler(tx: Tx, states: Collection[Status], handler: str | None) -> Iterator[Branch]:
    found = groups(tx, [state for state in states if state is not Status.INPROGRESS], handler)
    for state in states:
        own = [group for group in found if group.status is state]
        # The holders of those in progress are nodes; there are no more of them than workers.
        if state is Status.INPROGRESS or len(own) >= MAX_GROUPS:
            yield _whole(state, handler)
            continue
        for group in own:
            where = "j.status = %s AND j.holder = %s AND j.priority = %s"
            yield Branch(where, [str(state), group.holder, group.priority], _has_ended(state))


def _whole(state: Status, handler: str | None) -> Branch:
    """All rows of a status, or those of a handler: the server reads and sorts them all."""
    if handler is None:
        return Branch("j.status = %s", [str(state)], _has_ended(state))
    return Branch("j.status = %s AND j.handler = %s", [str(state), handler], _has_ended(state))


def _has_ended(state: Status) -> bool:
    return state in ENDED or state is Status.RETRY
