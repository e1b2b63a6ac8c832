"""Claims of handlers with a limit, a group template or fair turns; all others go the short way of `claims`.

Of the rows at the front of the handler's queue, and of those that stand first in the queues of groups with
room, as many are started as the limit allows; a job that may not start now moves into the queue of its group.
What does not fit stays `new`, and uses no attempt.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from workerd.config.limit_config import LimitConfig
from workerd.fairness import FairTurns, Waiting, choose
from workerd.job import AttemptRef, Claim
from workerd.outcome import Outcome, failed
from workerd.store import claims, group_queues, limits, queue_heads, slot_numbers
from workerd.store.base import Tx
from workerd.store.claim_window import ClaimWindow, FloodQueue, LimitedHandler, SeenRows, read_window
from workerd.store.claims import INLINE_BYTES, MAX_BATCH_BYTES, ClaimBatch, Cursor, NodeIdent
from workerd.store.limit_room import LimitRoom, LockedLimit
from workerd.store.limited_batch import LimitedBatch
from workerd.store.limits import RateKey, RateRow
from workerd.store.queue_heads import QueueHeads, QueueRows
from workerd.store.session import Params, Row
from workerd.store.slot_numbers import NO_RANGE, SlotNumbers

MAX_FULL_GROUPS = 100
"""Groups of waiting jobs that are looked at for a free slot where it is to be reported."""
LEFT_IN_FRONT = 2
"""Rows of each fair group that stay in the queue of the handler, where they cost nothing to find again."""


class ClaimRequest(NamedTuple):
    """What a claim is to bring: up to `wanted` rows for `node`, the first ones behind `cursor`.

    idle_only
        Claim only for groups that have had no turn recently.
    reports_full
        Report where a slot is missing.
    corrects_rates
        See LimitRoom.
    """

    wanted: int
    node: NodeIdent
    cursor: Cursor | None = None
    max_bytes: int = MAX_BATCH_BYTES
    idle_only: bool = False
    reports_full: bool = False
    corrects_rates: bool = True


def claim(
    tx: Tx,
    handler: LimitedHandler,
    request: ClaimRequest,
    limit: LockedLimit | None,
    queues: QueueHeads,
    turns: FairTurns | None,
) -> LimitedBatch:
    """Claim rows of the handler; the claim is valid once the transaction commits.

    `turns`: of a fair handler.

    Locks the handler's row (shared), then job rows that nobody has locked; then only inserts.
    """
    by_group = handler.fair or (limit is not None and limit.config.by_group)
    inline = min(INLINE_BYTES, request.max_bytes // request.wanted)
    asked = ClaimWindow(tx.dialect, handler, request.wanted, request.cursor, by_group, inline)
    found = _ask(tx, asked, request, limit, queues)
    if claims.read_pause(tx, handler.name, found.pause):
        return LimitedBatch.empty(request.cursor, paused=True)
    mono = time.monotonic_ns()
    room: LimitRoom | None = None
    if limit is not None and handler.limit is not None:
        numbers = _numbers(tx, handler, limit, found)
        room = LimitRoom(tx.now, handler, limit, numbers, found.groups)
        if request.corrects_rates:
            room.correct_rates(tx)
    fitting = request.wanted if room is None else room.of_limit(request.wanted)
    if fitting <= 0:
        return _nothing_fits(handler, request, room, found.front, queues)
    claiming = _Claiming(tx, handler, request, asked, room, turns, fitting, mono)
    scan = group_queues.scan(tx, handler.name, queues.cursor) if queues.scan else None
    seen = scan.heads if scan is not None else {}
    by_group = by_group or bool(queues.heads or seen) or (room is not None and room.holds_groups)
    if by_group or (handler.template is not None and _without_group(found.front)):
        batch = claiming.claim_by_group(queues.heads, seen, found.front, found.flood)
    else:
        batch = claiming.claim_front(found.front)
    if scan is None:
        return batch
    return batch._replace(scanned=True, cursor=scan.cursor)


class _Answers(NamedTuple):
    """What the store says of a handler before a claim.

    taken
        The numbers of its limit that are taken; if `free_range` is not empty, one of that range or beyond the
        limit, if there is any.
    groups
        The rates of the groups of its limit.
    """

    pause: list[Row]
    taken: list[Row]
    groups: list[Row]
    front: list[Row]
    flood: FloodQueue | None
    free_range: range


def _ask(
    tx: Tx,
    asked: ClaimWindow,
    request: ClaimRequest,
    limit: LockedLimit | None,
    queues: QueueHeads,
) -> _Answers:
    """Ask for what a claim needs to know, in one round trip; the pause is locked first."""
    handler = asked.handler
    questions: list[tuple[str, Params]] = [claims.pause_query(tx, handler.name)]
    free_range = NO_RANGE
    if limit is not None and handler.limit is not None:
        # What is reported to be full must be known in full.
        free_range = NO_RANGE if request.reports_full else limit.numbers_for(request.wanted)
        questions.append(_slots_query(tx, handler.limit, limit.config, free_range))
        questions.append(limits.group_rates_query(handler.limit))
    questions.append(asked.front())
    flood = None if limit is not None or request.idle_only or asked.in_full else queues.only
    if flood is not None:
        questions.append(asked.queue(flood, queues.heads[flood]))
    pause, *answers = tx.queries(*questions)
    queue = None if flood is None else FloodQueue(flood, answers.pop())
    front = answers.pop()
    taken, groups = answers or ([], [])
    return _Answers(pause, taken, groups, front, queue, free_range)


def _slots_query(tx: Tx, name: str, config: LimitConfig, free_range: range = NO_RANGE) -> tuple[str, Params]:
    if free_range and config.concurrency is not None:
        return slot_numbers.query_range(name, free_range, config.concurrency)
    return slot_numbers.query(tx.dialect, name, by_group=config.group_concurrency is not None)


def _numbers(tx: Tx, handler: LimitedHandler, limit: LockedLimit, found: _Answers) -> SlotNumbers:
    """The numbers of the limit's slots; if the range is not free any more, all are asked for after all."""
    if not found.free_range:
        return slot_numbers.read(found.taken)
    if not found.taken and not limit.row.is_kept(tx.now, handler.name):
        return SlotNumbers(0, {}, found.free_range)
    assert handler.limit is not None
    return slot_numbers.read(tx.query(*_slots_query(tx, handler.limit, limit.config)))


def _nothing_fits(
    handler: LimitedHandler,
    request: ClaimRequest,
    room: LimitRoom | None,
    front: list[Row],
    queues: QueueHeads,
) -> LimitedBatch:
    """The limit lets none start: when it will, and where a slot is missing."""
    batch = LimitedBatch.empty(request.cursor)
    if room is None:
        return batch
    return batch._replace(
        retry_at=room.retry_at or room.kept_until,
        row=room.row,
        free_range=room.range_left(request.wanted),
        full=_full(room, handler, front, queues.heads) if request.reports_full else None,
        kept=room.kept,
    )


def _full(
    room: LimitRoom, handler: LimitedHandler, rows: list[Row], heads: Iterable[str]
) -> dict[RateKey, RateRow]:
    """Where these rows and the queues of these groups wait for a slot, of a limit without any."""
    unknown = handler.template is not None and _without_group(rows)
    known = (group_queues.group_of(row[6]) for row in rows if row[6] is not None or handler.template is None)
    groups = dict.fromkeys(itertools.islice(itertools.chain(known, heads), MAX_FULL_GROUPS))
    return room.full(groups, more=unknown)


def _without_group(rows: list[Row]) -> bool:
    return any(row[6] is None for row in rows)


class _Claiming:
    """One claim under way, of up to `fitting` rows; `mono`: the monotonic nanosecond of `tx.now`."""

    def __init__(
        self,
        tx: Tx,
        handler: LimitedHandler,
        request: ClaimRequest,
        asked: ClaimWindow,
        room: LimitRoom | None,
        turns: FairTurns | None,
        fitting: int,
        mono: int,
    ) -> None:
        self._tx = tx
        self._handler = handler
        self._request = request
        self._asked = asked
        self._room = room
        self._turns = turns
        self._fitting = fitting
        self._mono = mono

    def claim_front(self, front: list[Row]) -> LimitedBatch:
        """Claim where groups count for nothing: the first rows of the handler's own queue."""
        rows = [row[:6] for row in front[: self._fitting]]
        room, reports_full = self._room, self._request.reports_full
        is_full = len(front) >= self._request.wanted
        if not rows:
            kept = room.kept if room is not None else {}
            return LimitedBatch.empty(None)._replace(full={} if reports_full else None, kept=kept)
        batch = self._take(rows)
        if room is not None and batch.claims:
            groups = [group_queues.group_of(row[6]) for row in front[: batch.found]]
            if batch.broken:
                by_ref = dict(zip([row[:2] for row in rows], groups, strict=False))
                groups = [by_ref[one.id, one.attempt] for one in batch.claims]
            self._give_uses(batch.claims, groups)
        full: dict[RateKey, RateRow] | None = None
        if room is not None and reports_full:
            left = front[batch.found :][:MAX_FULL_GROUPS]
            full = room.full([group_queues.group_of(row[6]) for row in left], more=is_full)
        all_wanted = is_full and self._fitting == self._request.wanted
        return LimitedBatch(
            batch._replace(cursor=claims.cursor_at(front[0]) if is_full else None),
            full=full,
            kept=room.kept if room is not None else {},
            more=batch.found < len(rows) or all_wanted or bool(batch.broken),
            retry_at=None if room is None else room.retry_at or room.kept_until,
            row=room.row if room is not None else None,
            free_range=NO_RANGE if room is None else room.range_left(self._request.wanted),
        )

    def claim_by_group(
        self,
        known: Mapping[str, Waiting],
        seen: Mapping[str, Waiting],
        front: list[Row],
        flood: FloodQueue | None,
    ) -> LimitedBatch:
        """Claim where groups count; `front`: the first rows of the handler's own queue.

        `known`, `seen`: the first rows of queues of groups, as far as they were known, and are seen now.
        `flood`: the only one that is known, if it was read with the front: a flood of one group is claimed in
        two round trips in place of four.
        """
        window = read_window(self._tx, self._asked, front)
        heads = {**known, **seen}
        parked, chosen = self._choose(window, heads, flood)
        groups = {job.ref: group for group, job in chosen}
        rows = self._whole_rows([*groups, *window.wrong], window, flood)
        found = self._finished(self._take(rows) if rows else None, window, groups)
        ended = {claim.ref for claim in found.claims} | {outcome.ref for outcome in found.broken}
        # Idle-only claims skip parking to stay fast.
        left = {} if self._request.idle_only else self._park(window, ended, heads)
        learned = {**seen, **queue_heads.after(parked.queues, groups)}
        queue_heads.add(learned, known, left)
        if len(ended) < len(rows) or found.broken:
            more = True  # too many bytes for one claim, or what ended at it has used no room
        elif len(chosen) < self._fitting:
            more = window.is_full or parked.last is not None
        else:
            more = self._fitting == self._request.wanted
        return LimitedBatch(
            found._replace(cursor=window.first if window.is_full else None),
            more=more,
            full=self._full({**heads, **learned}, ended, more=window.is_full),
            kept=self._room.kept if self._room is not None else {},
            retry_at=self._retry_at({*left, *heads}),
            heads=learned,
            turns=self._turns,
            row=self._room.row if self._room is not None else None,
            free_range=NO_RANGE if self._room is None else self._room.range_left(self._request.wanted),
            hiding=window.hiding,
        )

    def _take(self, rows: list[Row]) -> ClaimBatch:
        """Claim these rows as far as they fit into one claim."""
        request, handler = self._request, self._handler
        return claims.take(
            self._tx, handler.name, rows, request.node, self._asked.inline, request.max_bytes, self._mono,
            handler.expires_us,
        )  # fmt: skip

    # -- what may start

    def _choose(
        self, window: SeenRows, heads: Mapping[str, Waiting], flood: FloodQueue | None
    ) -> tuple[QueueRows, list[tuple[str, Waiting]]]:
        """What was read of the queues of groups, and the jobs to start of them and of the window."""
        fitting = self._fitting
        able = heads
        if self._room is not None:
            able = {group: head for group, head in heads.items() if self._has_room(group)}
        idle = self._idle([*able, *window.queues]) if self._request.idle_only else None
        if flood is not None:
            parked = queue_heads.of_flood(flood, self._request.wanted)
        else:
            may_start = able if idle is None else {g: head for g, head in able.items() if g in idle}
            parked = queue_heads.read(
                self._tx, self._handler.name, may_start, fitting, self._room, self._turns
            )
        waiting, last = _merged(window.queues, parked.queues), parked.last
        if idle is not None:
            last = self._last_of_idle(idle, able, waiting, last)
            waiting = {group: jobs for group, jobs in waiting.items() if group in idle}
        return parked, choose(waiting, fitting, self._rooms(waiting, fitting), self._turns, last)

    def _whole_rows(
        self, refs: Sequence[AttemptRef], window: SeenRows, flood: FloodQueue | None
    ) -> list[Row]:
        """These rows as `claims.take` wants them, locked."""
        read = dict(window.rows) if self._asked.in_full else {}
        if flood is not None:
            read.update((AttemptRef(*row[:2]), row) for row in flood.rows)
        if not read.keys() >= set(refs):
            return claims.rows_of(self._tx, refs, self._asked.inline)
        return [read[ref][:6] for ref in refs]

    def _has_room(self, group: str) -> bool:
        return self._room is None or self._room.of_group(group, 1) > 0

    def _idle(self, groups: Iterable[str]) -> set[str]:
        """Groups that have had no turn recently; all of them for handlers without turns."""
        turns = self._turns
        return {group for group in groups if turns is None or turns.was_idle(group)}

    def _last_of_idle(
        self,
        idle: Container[str],
        heads: Mapping[str, Waiting],
        waiting: Mapping[str, Sequence[Waiting]],
        last: int | None,
    ) -> int | None:
        """`last`, unless a group that is not idle has a more urgent job: priorities are above turns."""
        busy = [head.priority for group, head in heads.items() if group not in idle]
        busy += [
            jobs[0].priority for group, jobs in waiting.items() if group not in idle and self._has_room(group)
        ]
        return min(busy if last is None else [last, *busy], default=None)

    def _rooms(self, waiting: Mapping[str, Sequence[Waiting]], fitting: int) -> dict[str, int]:
        if self._room is None:
            return {}
        return {group: self._room.of_group(group, fitting) for group in waiting}

    # -- what becomes of it

    def _finished(
        self, batch: ClaimBatch | None, window: SeenRows, groups: Mapping[AttemptRef, str]
    ) -> ClaimBatch:
        """The batch with what its claims use, and with an end for rows without a group."""
        if batch is None:
            return ClaimBatch([], [], None, 0)
        broken: list[Outcome] = list(batch.broken)
        taken = batch.claims
        if window.wrong:
            broken += [failed(one, window.wrong[one.ref]) for one in taken if one.ref in window.wrong]
            taken = [one for one in taken if one.ref not in window.wrong]
        if window.filled:
            group_queues.write_groups(
                self._tx, {c.ref: window.filled[c.ref] for c in taken if c.ref in window.filled}
            )
        if self._room is not None and taken:
            self._give_uses(taken, [groups[one.ref] for one in taken])
        if self._turns is not None:
            _mark_those_ahead(taken, groups, self._turns)
        return batch._replace(claims=taken, broken=broken)

    def _give_uses(self, taken: Sequence[Claim], groups: Sequence[str]) -> None:
        assert self._room is not None
        for one, use in zip(taken, self._room.use(self._tx, taken, groups), strict=True):
            # Not shared yet, so mutate in place (a copy is 7x slower).
            msgspec.structs.force_setattr(one, "limited", use)

    def _park(
        self, window: SeenRows, ended: set[AttemptRef], heads: Collection[str]
    ) -> dict[str, list[Waiting]]:
        """Move the rows of the window that may not start now into the queues of their groups.

        `heads`: the groups that have one. None of their rows is left in front: those before it would be
        started first, and all claims until then would begin there, at the dead entries of what was moved.
        """
        left: dict[str, list[Waiting]] = {}
        for group, jobs in window.queues.items():
            waiting = [job for job in jobs if job.ref in window.rows and job.ref not in ended]
            if not self._has_room(group):
                left[group] = waiting
            elif self._handler.fair:
                left[group] = waiting[0 if group in heads else LEFT_IN_FRONT :]
        left = {group: jobs for group, jobs in left.items() if jobs}
        refs = {job.ref: group for group, jobs in left.items() for job in jobs}
        group_queues.park(self._tx, self._handler.name, refs)
        group_queues.write_groups(self._tx, {r: window.filled[r] for r in refs if r in window.filled})
        return left

    def _full(
        self, heads: Mapping[str, Waiting | None], ended: set[AttemptRef], *, more: bool
    ) -> dict[RateKey, RateRow] | None:
        """Where jobs wait for a slot; None if that was not asked for."""
        if not self._request.reports_full or self._room is None:
            return None
        waits = [(head, group) for group, head in heads.items() if head is not None and head.ref not in ended]
        return self._room.full([group for _, group in heapq.nsmallest(MAX_FULL_GROUPS, waits)], more=more)

    def _retry_at(self, groups: set[str]) -> int | None:
        """When the rate or hold of the limit, or of one of these groups, lets the next start."""
        room = self._room
        if room is None:
            return None
        moments = [
            room.retry_at,
            room.kept_until,
            *(room.group_retry_at(group) for group in groups & room.groups.keys()),
        ]
        return min((moment for moment in moments if moment is not None), default=None)


def _mark_those_ahead(taken: list[Claim], groups: Mapping[AttemptRef, str], turns: FairTurns) -> None:
    """The first claim of each group that was idle is ahead of what the pool has been given.

    But not of more urgent ones that are claimed with it.
    """
    seen: set[str] = set()
    for one in itertools.takewhile(lambda one: one.priority == taken[0].priority, taken):
        group = groups[one.ref]
        if group not in seen:
            seen.add(group)
            if turns.was_idle(group):
                msgspec.structs.force_setattr(one, "is_ahead", True)  # as in `_give_uses`


def _merged(
    window: Mapping[str, Sequence[Waiting]], parked: Mapping[str, Sequence[Waiting]]
) -> dict[str, list[Waiting]]:
    merged = {group: list(jobs) for group, jobs in parked.items() if jobs}
    for group, jobs in window.items():
        merged[group] = sorted([*merged[group], *jobs]) if group in merged else sorted(jobs)
    return merged
