"""Limits as people see them: what holds, who has slots, what waits, what is held until when."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing

from workerd import documents
from workerd.config.limit_config import LimitConfig
from workerd.config.model import Config
from workerd.document_types import Document
from workerd.errors import InvalidValue, NotFound, StoreError
from workerd.group import checked_group, parse_template
from workerd.job import Status
from workerd.operations import audit
from workerd.operations.access import open_checked
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.store import limits, nodes, queries, slots
from workerd.store.base import Tx
from workerd.store.columns import JobRow, jobs_by_key
from workerd.text import line

MAX_WAITING_COUNTED = queries.MAX_COUNT
"""Counts are exact up to here."""
MAX_HOLDERS_SHOWN = 200
MAX_NAMED = 5
"""Jobs that a sentence names."""


def list_(tx: Tx, config: Config) -> list[Document]:
    """All limits, those first that are configured here; then others that nodes have or jobs hold."""
    infos = _infos(tx)
    published = _limits(infos)
    handlers: defaultdict[str, list[str]] = defaultdict(list)
    for handler, limit in sorted(_limit_of(config, infos).items()):
        handlers[limit].append(handler)
    holders: defaultdict[str, list[slots.Holder]] = defaultdict(list)
    for holder in slots.holders(tx):
        holders[holder.limit].append(holder)
    holds: defaultdict[str, list[limits.Held]] = defaultdict(list)
    for hold in limits.held(tx):
        holds[hold.limit].append(hold)
    others = sorted(
        {name for theirs in published.values() for name in theirs} | holders.keys() | holds.keys()
    )
    names = [*config.limits, *(name for name in others if name not in config.limits)]
    refs = [holder.ref for name in names for holder in holders[name][:MAX_HOLDERS_SHOWN]]
    rows = jobs_by_key(tx, refs, most=0)
    return [
        documents.limit(
            name,
            effective(config, published, name),
            handlers=handlers[name],
            waiting=_waiting(tx, handlers[name]),
            holders=holders[name],
            rows=rows,
            holds=holds[name],
            shown=MAX_HOLDERS_SHOWN,
        )
        for name in names
    ]


def unhold(
    tx: Tx, actor: Actor, config: Config, name: str, group: str | None = None
) -> tuple[Document, bool]:
    """End a hold that a job asked for, of a limit or of one of its groups; the limit, and if it was held.

    What waits for it starts at once on this node, on others within one poll. `group`: "" is that of jobs
    without one. Raises NotFound, InvalidValue.
    """
    was_held = limits.end_hold(tx, name, checked_group(group) if group else group)
    if was_held:
        audit.record(tx, actor, Action.UNHOLD, name, None if group is None else {"group": group})
    found = {one["name"]: one for one in list_(tx, config)}
    if name not in found and not was_held:
        known = ", ".join(sorted(found)) or "none"
        raise NotFound(f'Limit "{name}" not found; known are: {known}.')
    return found.get(name) or _removed(name), was_held


def _removed(name: str) -> Document:
    """One of which nothing is left."""
    return documents.limit(name, None, handlers=[], waiting=0, holders=[], rows={}, holds=[], shown=0)


def _infos(tx: Tx) -> dict[str, nodes.NodeInfo]:
    """What live nodes, by name, publish."""
    return {node.name: node.published for node in nodes.list_(tx) if node.lease_until > tx.now}


def _limits(infos: Mapping[str, nodes.NodeInfo]) -> dict[str, Mapping[str, LimitConfig]]:
    """The limits that they are configured with."""
    return {name: info.limits or {} for name, info in infos.items()}


def _limit_of(config: Config, infos: Mapping[str, nodes.NodeInfo]) -> dict[str, str]:
    """The limit of each handler that has one; of those that are configured here, by that."""
    theirs = {handler: limit for info in infos.values() for handler, limit in info.limit_of.items()}
    own = {handler.name: handler.limit for handler in config.handlers.values()}
    return {handler: limit for handler, limit in {**theirs, **own}.items() if limit}


def takes_turns(tx: Tx, config: Config, handler: str) -> bool:
    """Whether the groups of a handler take turns; if it is not configured here, on any live node."""
    own = config.handlers.get(handler)
    if own is not None:
        return own.fair
    return any(handler in info.fair for info in _infos(tx).values())


def effective(
    config: Config, published: Mapping[str, Mapping[str, LimitConfig]], name: str
) -> LimitConfig | None:
    """The lower of each value that is configured anywhere; None where no node has the limit any more."""
    found = [theirs[name] for theirs in published.values() if name in theirs]
    if name in config.limits:
        found.insert(0, config.limits[name])
    lower: LimitConfig | None = None
    for one in found:
        lower = one if lower is None else lower.lower(one)
    return lower


def waiting(tx: Tx, config: Config, name: str) -> int:
    """`new` jobs of the handlers of a limit that are configured here, at most MAX_WAITING_COUNTED of each."""
    return _waiting(tx, [handler.name for handler in config.handlers.values() if handler.limit == name])


def _waiting(tx: Tx, handlers: Sequence[str]) -> int:
    counted = queries.counts(tx, handlers, [Status.NEW], MAX_WAITING_COUNTED)
    return sum(count.count for count in counted)


def used(tx: Tx, config: Config) -> dict[str, int]:
    """Attempts that hold slots of each limit that is configured here, or of any other."""
    found: defaultdict[str, set[object]] = defaultdict(set)
    for holder in slots.holders(tx):
        found[holder.limit].add(holder.ref)
    return {name: len(found[name]) for name in {*config.limits, *found}}


def why_waiting(tx: Tx, config: Config, row: JobRow) -> list[str]:
    """How a limit keeps a job waiting: the limit, the group, and the jobs that hold it."""
    infos = _infos(tx)
    name = _limit_of(config, infos).get(row.handler, "")
    limit = effective(config, _limits(infos), name)
    if limit is None:
        return []
    handler = config.handlers.get(row.handler)
    group = row.group_key or ("" if handler is None else _filled(handler.group, row.vars))
    found = limits.state(tx, name, group)
    of_group = f'the group "{group}"' if group else "jobs without a group"
    reasons: list[str] = []
    for whose, rate, started, held in (
        (f'limit "{name}"', limit.starts, found.limit, None),
        (f'limit "{name}" for {of_group}', limit.group_starts, found.group, group),
    ):
        if started.is_held(tx.now):
            until = documents.moment(started.held_until)
            reasons.append(
                f"No job under the {whose} starts until {until}: a job asked for this hold."
                + _how_to_unhold(name, held)
            )
        elif rate is not None and not rate.fitting(started.tat, tx.now):
            moment = documents.moment(rate.next_at(started.tat, tx.now))
            reasons.append(
                f"The rate of the {whose}, {documents.rate(rate)}, allows the next start at {moment}."
            )
    for whose, most, holders, state in (
        (f'limit "{name}"', limit.concurrency, found.holders, found.limit),
        (f'limit "{name}" for {of_group}', limit.group_concurrency, found.group_holders, found.group),
    ):
        if most is not None and len(holders) >= most:
            jobs = ", ".join(documents.identity(ref.id) or "" for ref in holders[:MAX_NAMED])
            more = " and others" if len(holders) > MAX_NAMED else ""
            reasons.append(f"The {whose} is full: {len(holders)} of {most} running: {jobs}{more}.")
        elif most is not None and len(holders) == most - 1 and state.is_kept(tx.now, row.handler):
            reasons.append(f'The only free slot of the {whose} is reserved for "{state.next_handler}".')
    return reasons


def _how_to_unhold(name: str, group: str | None) -> str:
    words = [name] if group is None else [name, "--group", group]
    if any(line(word) != word for word in words):
        return ""  # it cannot be typed
    return f" `workerd limits unhold {shlex.join(words)}` ends it."


def _filled(template: str, vars_: bytes | None) -> str:
    """The group that a claim would give a plain INSERT; "" for none."""
    if not template:
        return ""
    try:
        return parse_template(template).fill(vars_ or b"{}")
    except InvalidValue:
        return ""


def differing(config: Config) -> list[str]:
    """Sentences on limits that live nodes are configured with differently; none if the store is away."""
    try:
        with closing(open_checked(config)) as store:
            infos = store.read(_infos)
    except StoreError:
        return []
    published = _limits(infos)
    sentences = []
    for handler in config.handlers.values():
        others = sorted(nodes.nodes_with_other_limit(infos, handler.name, handler.limit))
        if others:
            where = ", ".join(others)
            sentences.append(f"handlers.{handler.name}: limit differs on {where}; each counts separately")
    for name, own in config.limits.items():
        others = sorted(node for node, theirs in published.items() if theirs.get(name, own) != own)
        if others:
            sentences.append(
                f"limits.{name}: configured differently on {', '.join(others)}; the lower of each value holds"
            )
    return sentences
