"""What this node knows of its handlers with a limit, a group template or fair turns, for their claims."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig
from workerd.config.model import Config
from workerd.dispatcher.slot_turns import SlotTurns
from workerd.fairness import FairTurns, Waiting
from workerd.group import parse_template
from workerd.job import AttemptRef
from workerd.log import get_logger
from workerd.store import limited_claims, limits, reclaims
from workerd.store.base import Tx
from workerd.store.claim_window import LimitedHandler
from workerd.store.claims import Cursor, NodeIdent
from workerd.store.limit_room import LockedLimit
from workerd.store.limited_batch import LimitedBatch
from workerd.store.limited_claims import ClaimRequest
from workerd.store.nodes import NodeInfo, nodes_with_other_limit
from workerd.store.queue_heads import QueueHeads
from workerd.store.reclaims import LimitScopes
from workerd.store.slot_numbers import GROUP, LIMIT, NO_RANGE

SCAN_S = 1.0
"""Interval of scans for queues of groups, which other nodes create too."""
SCAN_ON_S = 0.05
"""Pause between the parts of a scan with more queues than one part reads."""
HIDING_S = 1.0
"""How long the groups that a claim saw in front stay valid: a queue without claims is not walked."""
MAX_QUEUES_KNOWN = 20_000
"""Queues of a handler that are remembered; others are found once some of these are empty."""

_log = get_logger("dispatcher")


class _GroupMemory:
    """The queues of a handler's groups, as far as they are known, and the turns of a fair one."""

    def __init__(self, turns: FairTurns | None) -> None:
        self.turns = turns
        self.heads: dict[str, Waiting] = {}
        self.hiding: frozenset[str] = frozenset()
        self.looked_at = 0.0
        self._cursor: str | None = None
        self._scan_at = 0.0

    def known(self) -> QueueHeads:
        return QueueHeads(self.heads, time.monotonic() >= self._scan_at, self._cursor)

    def learn(self, batch: LimitedBatch) -> None:
        if batch.hiding is not None:
            self.hiding = batch.hiding
            self.looked_at = time.monotonic()
        for group, head in batch.heads.items():
            if head is None:
                self.heads.pop(group, None)
            else:
                self.add(group, head)
        if batch.scanned:
            self._cursor = batch.cursor
            self._scan_at = time.monotonic() + (SCAN_S if batch.cursor is None else SCAN_ON_S)
        if self.turns is not None and batch.turns is not None:
            self.turns.adopt(batch.turns)

    def add(self, group: str, head: Waiting) -> None:
        if group in self.heads or len(self.heads) < MAX_QUEUES_KNOWN:
            self.heads[group] = head


class LimitedHandlers:
    """The handlers that are claimed by `limited_claims`; empty on a node that has none.

    `on_hiding`: called after a claim that saw few groups in front of others that it may not have seen.
    """

    def __init__(self, config: Config) -> None:
        configured = [h for h in config.handlers.values() if h.limit or h.group or h.fair]
        self._handlers = {h.name: _of(h) for h in configured}
        self._node = config.node.name
        self._slot_turns = SlotTurns()
        self._agreements = 0  # how often it was agreed: at the third time others know of this node too
        self._memory = {
            h.name: _GroupMemory(FairTurns(config.groups) if h.fair else None) for h in configured
        }
        self._configured = config.limits
        self._limits = dict(config.limits)
        self._free_range: dict[str, range] = {}
        """Numbers of each limit's slots that were free after the last claim."""
        self.on_hiding: Callable[[], object] = lambda: None
        self._warned: dict[tuple[str, str], tuple[str, ...]] = {}
        self._counted: dict[str, frozenset[str]] = {}
        """The scopes of each limit in which attempts that ran before it counted them have slots."""
        self.counted_late: set[AttemptRef] = set()
        """Attempts whose ends will not name all of their slots."""
        self.fair = frozenset(h.name for h in configured if h.fair)
        self.parking = frozenset(h.name for h in configured if h.limit or h.fair)

    def __contains__(self, handler: str) -> bool:
        return handler in self._handlers

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._handlers)

    @property
    def has_limits(self) -> bool:
        """Whether any handler has a limit."""
        return any(handler.limit is not None for handler in self._handlers.values())

    def of_limit(self, limits: Iterable[str]) -> set[str]:
        """The handlers of these limits."""
        wanted = set(limits)
        return {name for name, handler in self._handlers.items() if handler.limit in wanted}

    def limits_of(self, handlers: Iterable[str]) -> set[str]:
        """The limits of those of these handlers that have one."""
        found = (self._handlers[name].limit for name in handlers if name in self._handlers)
        return {limit for limit in found if limit is not None}

    def retaken(self, handler: str) -> LimitScopes | None:
        """What its attempts take of its limit, None without one."""
        limit = self._handlers[handler].limit if handler in self._handlers else None
        return None if limit is None else LimitScopes(limit, self._scopes(limit))

    def _scopes(self, limit: str) -> tuple[str, ...]:
        """In which a running attempt has a slot."""
        config = self._limits[limit]
        counted = ((LIMIT, config.concurrency), (GROUP, config.group_concurrency))
        return tuple(scope for scope, count in counted if count is not None)

    def lock(self, tx: Tx, handlers: Iterable[str]) -> dict[str, LockedLimit]:
        """Lock the limits of these handlers, without those that another claim has locked."""
        return {
            name: LockedLimit(self._limits[name], row, self._free_range.get(name, NO_RANGE))
            for name, row in limits.lock(tx, self.limits_of(handlers)).items()
        }

    def count_running(self, tx: Tx, locked: Collection[str]) -> dict[str, list[AttemptRef]]:
        """Give slots of these limits, which are locked, to attempts that began before they counted them.

        Once for each limit and scope; changes nothing here, since the transaction may run again.
        """
        counted: dict[str, list[AttemptRef]] = {}
        for name in sorted(locked):
            scopes = self._scopes(name)
            if not self._counted.get(name, frozenset()).issuperset(scopes):
                handlers = sorted(self.of_limit([name]))
                counted[name] = reclaims.count_running(tx, LimitScopes(name, scopes), handlers)
        return counted

    def on_counted(self, counted: Mapping[str, Collection[AttemptRef]]) -> None:
        """The transaction that gave these attempts slots was committed."""
        for name, refs in counted.items():
            self._counted[name] = frozenset(self._scopes(name))
            self.counted_late.update(refs)

    def claim(
        self,
        tx: Tx,
        handler: str,
        locked: dict[str, LockedLimit],
        wanted: int,
        node: NodeIdent,
        cursor: Cursor | None,
        max_bytes: int,
        *,
        idle_only: bool = False,
    ) -> LimitedBatch:
        """Claim for one handler; changes nothing here, since the transaction may run again.

        `locked`: the limits that the transaction has locked, which it keeps up to date.
        `idle_only`: only of groups that have had no turn recently.
        """
        known = self._handlers[handler]
        limit: LockedLimit | None = None
        if known.limit is not None:
            if known.limit not in locked:
                return LimitedBatch.empty(cursor, busy=True)
            limit = locked[known.limit]
        memory = self._memory[handler]
        turns = memory.turns.trial() if memory.turns is not None else None
        heads = memory.known() if handler in self.parking else QueueHeads({}, False, None)
        # Claims for newcomers alone are made of a pool that has no room for others.
        is_contested = not idle_only and self._slot_turns.is_contested(handler)
        request = ClaimRequest(
            wanted, node, cursor, max_bytes,
            idle_only=idle_only, reports_full=is_contested, corrects_rates=self._agreements > 2,
        )  # fmt: skip
        batch = limited_claims.claim(tx, known, request, limit, heads, turns)
        if is_contested and limit is not None:
            batch = self._slot_turns.settle(tx, handler, limit.config, batch)
        if known.limit is not None and limit is not None and batch.row is not None:
            locked[known.limit] = limit._replace(row=batch.row, free_range=batch.free_range)
        return batch

    def learn(self, handler: str, batch: LimitedBatch) -> None:
        """The transaction with this batch was committed."""
        self._memory[handler].learn(batch)
        limit = self._handlers[handler].limit
        if limit is not None and batch.row is not None:
            self._free_range[limit] = batch.free_range
        if self._slot_turns.is_contested(handler):
            self._slot_turns.learn(handler, batch)
        if batch.hiding:
            self.on_hiding()

    def hiding(self, now: float) -> dict[str, frozenset[str]]:
        """The handlers in whose queues jobs may be hidden, with the groups in front of them.

        Only handlers with a claim in the last HIDING_S. `now`: monotonic seconds.
        """
        return {
            name: memory.hiding
            for name, memory in self._memory.items()
            if memory.hiding and now - memory.looked_at < HIDING_S
        }

    def handler(self, name: str) -> LimitedHandler:
        """What its configuration says of its claims."""
        return self._handlers[name]

    def found(self, handler: str, parked: Mapping[str, Sequence[Waiting]]) -> None:
        """Jobs were moved into the queues of these groups."""
        memory = self._memory[handler]
        for group, jobs in parked.items():
            memory.add(group, min([*jobs, memory.heads.get(group, jobs[0])]))

    # -- limits of other nodes

    def agree(self, published: Mapping[str, NodeInfo]) -> None:
        """Take the lower of each value of the limits that live nodes, by name, are configured with.

        And learn whose handlers share them.
        """
        self._agreements += 1
        elsewhere = [info.limit_of for name, info in published.items() if name != self._node]
        limit_of = {name: known.limit for name, known in self._handlers.items() if known.limit is not None}
        self._slot_turns.agree(limit_of, elsewhere)
        for name, own in self._configured.items():
            lower = own
            others = []
            for node, info in sorted(published.items()):
                theirs = info.limits or {}
                if name in theirs and theirs[name] != own:
                    lower = lower.lower(theirs[name])
                    others.append(node)
            self._limits[name] = lower
            # Where the limit counts no more, attempts begin without slots.
            self._counted[name] = self._counted.get(name, frozenset()) & frozenset(self._scopes(name))
            if self._is_news("limit.differs", name, others):
                _log.warning("limit.differs", limit=name, nodes=", ".join(others))
        for handler, limit in limit_of.items():
            others = sorted(nodes_with_other_limit(published, handler, limit))
            if self._is_news("handler.limit_differs", handler, others):
                _log.warning("handler.limit_differs", handler=handler, limit=limit, nodes=", ".join(others))

    def _is_news(self, event: str, name: str, nodes: Sequence[str]) -> bool:
        """Whether there are any, and others than the last time."""
        before = self._warned.get((event, name))
        self._warned[event, name] = tuple(nodes)
        return bool(nodes) and before != tuple(nodes)


def _of(handler: HandlerConfig) -> LimitedHandler:
    return LimitedHandler(
        name=handler.name,
        limit=handler.limit or None,
        template=parse_template(handler.group) if handler.group else None,
        fair=handler.fair,
        expires_us=None if handler.expires is None else round(handler.expires * SECOND),
    )
