"""Cancel or retry all jobs that a filter means: found first, then changed in slices, a transaction each.

What was found is what is changed: a job that fails meanwhile is not retried with the others, and of two
callers each job is changed by the first. Between slices anybody may stop: what is done is done and recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, TypeVar

from workerd.errors import InvalidValue
from workerd.job import ENDED, LIVE, AttemptRef, Status, id_text
from workerd.job_filter import JobFilter
from workerd.operations import audit
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.operations.rules import UNREDACTED, Rules
from workerd.store import bulk_control, job_branches, job_selection
from workerd.store.base import Tx
from workerd.store.columns import chunks
from workerd.store.job_branches import Branch
from workerd.store.job_matches import ShownMeta
from workerd.store.job_selection import Behind

SLICE_ROWS = 500
"""Jobs of one transaction."""

T = TypeVar("T")
Run = Callable[[Callable[[Tx], T]], T]
"""Runs an operation in a transaction of its own."""


class Act(StrEnum):
    """What is done with each job."""

    CANCEL = "cancel"
    RETRY = "retry"


STATES: dict[Act, frozenset[Status]] = {Act.CANCEL: LIVE, Act.RETRY: ENDED | {Status.SCHEDULED}}
"""The statuses that a filter may name."""
USUAL_STATES: dict[Act, frozenset[Status]] = {Act.CANCEL: LIVE, Act.RETRY: frozenset({Status.FAILURE})}
"""Those that a filter without a status matches."""


def check(act: Act, wanted: JobFilter) -> None:
    """Raises InvalidValue for a filter that matches all jobs, or a status that the act cannot change."""
    if wanted.is_empty:
        raise InvalidValue(
            "filter: expected at least one of handler, status, since, until, reason, error, group, request,"
            " meta; got none"
        )
    wanted.check()
    if wanted.status is not None and wanted.status not in STATES[act]:
        expected = ", ".join(status for status in Status if status in STATES[act])
        raise InvalidValue(f"status: expected one of {expected} to {act}, got {wanted.status}")


class _Place(NamedTuple):
    """Where the search is: the branches to look at, the first of them from `behind` on."""

    branches: list[Branch]
    behind: Behind | None = None


class _Looked(NamedTuple):
    refs: list[AttemptRef]
    place: _Place


class Search:
    """Finds what a filter means; `matched`: how many so far, `found`: the first `limit` of them, if given.

    Each `look` reads a bounded number of rows, in a transaction of its own; `add` takes what it returned.
    """

    def __init__(
        self, act: Act, wanted: JobFilter, *, limit: int | None = None, rules: Rules = UNREDACTED
    ) -> None:
        """Raises InvalidValue as `check`."""
        check(act, wanted)
        self.act, self.wanted = act, wanted
        self.matched = 0
        self.found: list[AttemptRef] = []
        self._limit = limit
        self.rules = rules
        self._place: _Place | None = None

    @property
    def is_over(self) -> bool:
        """Whether everything was looked at."""
        return self._place is not None and not self._place.branches

    def look(self, tx: Tx) -> _Looked:
        """The next rows."""
        if self._place is None:
            return _Looked([], _Place(job_branches.branches(tx, self.wanted, USUAL_STATES[self.act])))
        branches, behind = self._place
        found = job_selection.read(tx, branches[0], self.wanted, behind, shown_meta(tx, self.rules))
        if found.behind is None:
            return _Looked(found.refs, _Place(branches[1:]))
        return _Looked(found.refs, _Place(branches, found.behind))

    def add(self, looked: _Looked) -> None:
        """Count what a `look` has returned."""
        self._place = looked.place
        self.matched += len(looked.refs)
        room = len(looked.refs) if self._limit is None else max(0, self._limit - len(self.found))
        self.found += looked.refs[:room]

    def finish(self, read: Run[Any]) -> None:
        """Look at everything."""
        while not self.is_over:
            self.add(read(self.look))

    def reopening_note(self, tx: Tx) -> str | None:
        """What a retry does besides to ended requests of what was found, None if nothing."""
        if self.act is Act.CANCEL:
            return None
        if not any(bulk_control.has_ended_request(tx, refs) for refs in self.slices()):
            return None
        return "Ended requests of these jobs are reopened; what has `finally` runs it again at its new end."

    def slices(self) -> Iterator[list[AttemptRef]]:
        """What was found, as `change` takes it."""
        return (list(part) for part in chunks(self.found, SLICE_ROWS))


def shown_meta(tx: Tx, rules: Rules) -> ShownMeta:
    """Meta as the caller may see it."""
    return lambda handler, meta: rules.of(tx, handler).shown_json(meta)


def change(tx: Tx, actor: Actor, search: Search, refs: list[AttemptRef], *, fresh: bool = False) -> int:
    """Cancel or retry a slice of what was found, with one row in the audit; how many were changed.

    `fresh`: retry without what earlier attempts have saved. A running job is asked to stop.
    """
    wanted = search.wanted
    jobs, requests = bulk_control.locked(tx, wanted, refs, shown_meta(tx, search.rules))
    if search.act is Act.CANCEL:
        done = bulk_control.cancel(tx, jobs, requests)
    else:
        done = bulk_control.retry(tx, jobs, fresh=fresh)
    if done:
        detail: dict[str, Any] = {"filter": wanted.document(), "ids": [id_text(one) for one in done]}
        detail |= {"fresh": True} if fresh else {}
        audit.record(tx, actor, Action(search.act), wanted.handler, detail)
    return len(done)


def change_all(run: Run[int], actor: Actor, search: Search, *, fresh: bool = False) -> Iterator[int]:
    """Change what was found, slice by slice; after each how many were changed so far."""
    done = 0
    for refs in search.slices():
        done += run(partial(change, actor=actor, search=search, refs=refs, fresh=fresh))
        yield done
