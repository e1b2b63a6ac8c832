"""Enqueue checks: known handlers, vars that fit their signature, `max_waiting`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from workerd.config.handler_config import HandlerConfig
from workerd.config.model import Config
from workerd.document_types import Enqueued
from workerd.errors import HandlerNotFound, InvalidValue, TooManyWaiting
from workerd.group import parse_template
from workerd.job import id_text
from workerd.job_spec import JobSpec, NewJob, check
from workerd.redaction import Scrubber
from workerd.signature import check_vars, coerce_texts, redaction_of
from workerd.store import duplicates, handlers, jobs, queries
from workerd.store.base import Tx
from workerd.store.columns import JobRow

MAX_NAMES_SHOWN = 20


class KnownHandlers:
    """Cache of the handlers that the store knows, so that not every enqueue queries them."""

    TTL_S = 1.0
    """A new signature is missed for this long; then the attempt itself rejects vars that do not fit."""

    def __init__(self) -> None:
        self._handlers: Mapping[str, bytes | None] = {}
        self._until = 0.0

    def query(self, tx: Tx) -> Mapping[str, bytes | None]:
        """Refresh the cache: signatures by handler, None where unknown."""
        queried_at = time.monotonic()
        self._handlers = handlers.known(tx)
        self._until = queried_at + self.TTL_S
        return self._handlers

    @property
    def is_recent(self) -> bool:
        """Whether the cache is still valid."""
        return time.monotonic() < self._until

    def refusals(self, tx: Tx, specs: Sequence[NewJob], config: Config) -> list[Exception | None]:
        """Why each may not be enqueued, or None; the cache refuses none without a query."""
        if self.is_recent and all(self.admits(spec, config) for spec in specs):
            return [None] * len(specs)
        known = self.query(tx)
        return [refusal(spec, known, config) for spec in specs]

    def admits(self, spec: NewJob, config: Config) -> bool:
        """Whether this job may be enqueued, by the cached handlers alone."""
        return refusal(spec, self._handlers, config) is None


def checked(spec: JobSpec, config: Config) -> NewJob:
    """The spec as the store inserts it, with what its handler's configuration adds. Raises InvalidValue."""
    handler = config.handlers.get(spec.handler)
    if handler is not None and spec.unique_key is not None:
        spec = _with_conflict_of(spec, handler)
    job = check(spec, config.gateway.max_body)
    if handler is None or not handler.group or job.group_key is not None:
        return job
    return msgspec.structs.replace(job, group_key=parse_template(handler.group).fill(job.vars))


def _with_conflict_of(spec: JobSpec, handler: HandlerConfig) -> JobSpec:
    """The spec with what the handler says of conflicts, where it says nothing of them itself."""
    if spec.unique_for is not None or spec.id is not None:
        return spec
    if handler.unique_for is not None and spec.on_conflict is None:
        return replace(spec, unique_for=handler.unique_for)
    conflict = handler.on_conflict if spec.on_conflict is None else spec.on_conflict
    max_delay = handler.max_delay if spec.max_delay is None and conflict == "debounce" else spec.max_delay
    return replace(spec, on_conflict=conflict, max_delay=max_delay)


def is_plain(spec: NewJob, config: Config) -> bool:
    """Whether no existing row can prevent the job."""
    return spec.plain and _bounded(spec.handler, config) is None


def admit(
    tx: Tx,
    specs: Sequence[NewJob],
    config: Config,
    *,
    check_signatures: bool = True,
    known: Mapping[str, bytes | None] | None = None,
) -> list[Enqueued]:
    """Check and insert all jobs or none. `check_signatures`: also vars; `known`: handlers, if queried before.

    Raises HandlerNotFound, TooManyWaiting, InvalidValue for vars that do not fit a known signature.
    """
    if known is None:
        known = handlers.known(tx)
    check_handlers((spec.handler for spec in specs), known, config)
    if check_signatures:
        for spec in specs:
            _check_vars(spec, known.get(spec.handler))
    # What exists already adds no waiting job, which only inserting it tells.
    new = [spec.handler for spec in specs if spec.id is None and spec.unique_key is None]
    check_waiting(tx, new, config)
    done = insert(tx, specs)
    if len(new) < len(specs):
        made = {spec.handler for spec, one in zip(specs, done, strict=True) if one.created}
        check_waiting(tx, sorted(made), config, inserted=True)
    return done


def known_handlers(tx: Tx) -> Mapping[str, bytes | None]:
    """Signatures by handler, None where unknown; `with_texts` and `admit` take them."""
    return handlers.known(tx)


def with_texts(
    spec: JobSpec, texts: Mapping[str, str], known: Mapping[str, bytes | None], config: Config
) -> NewJob:
    """A job with further vars as texts, which the handler's known signature makes values of.

    Raises HandlerNotFound, InvalidValue for a wrong option.
    """
    check_handlers([spec.handler], known, config)
    values = {**spec.vars, **coerce_texts(known.get(spec.handler), texts)}
    return checked(replace(spec, vars=values), config)


def refusal(spec: NewJob, known: Mapping[str, bytes | None], config: Config) -> Exception | None:
    """Why this job may not be enqueued, or None; `max_waiting` is not checked."""
    try:
        check_handlers([spec.handler], known, config)
        _check_vars(spec, known.get(spec.handler))
    except (HandlerNotFound, InvalidValue) as error:
        return error
    return None


def admit_each(
    tx: Tx, specs: Sequence[NewJob], known: KnownHandlers, config: Config
) -> list[JobRow | Exception]:
    """Check and insert each job, which has no id and no unique key: its row, or why it is refused.

    `max_waiting` is not checked. Two round trips with the COMMIT: three more to ask for the handlers, and to
    read back what was written, took a third of the gateway's CPU time of a `POST /jobs` on one connection.
    """
    refusals = known.refusals(tx, specs, config)
    admitted = [spec for spec, why in zip(specs, refusals, strict=True) if why is None]
    inserted = iter(jobs.insert_new(tx, admitted) if admitted else ())
    return [next(inserted) if why is None else why for why in refusals]


def insert(tx: Tx, specs: Sequence[NewJob]) -> list[Enqueued]:
    """Insert all jobs without checking handlers, vars or `max_waiting`."""
    return [_enqueued(done) for done in duplicates.insert(tx, specs)]


def insert_alone(tx: Tx, spec: NewJob, on_sent: Callable[[], None] | None = None) -> Enqueued:
    """The same for one plain job, in one statement; `on_sent`: as in Tx.execute_alone."""
    return _enqueued(jobs.insert_alone(tx, spec, on_sent))


def _enqueued(done: jobs.Inserted) -> Enqueued:
    return Enqueued(id_text(done.id), done.created, done.replaced)


def check_handlers(names: Iterable[str], known: Mapping[str, bytes | None], config: Config) -> None:
    """Raises HandlerNotFound with the known names for a handler in neither configuration nor store."""
    for name in dict.fromkeys(names):
        if name not in known and name not in config.handlers:
            raise HandlerNotFound(unknown(name, {*known, *config.handlers}))


def unknown(name: str, known: Iterable[str]) -> str:
    """The message for an unknown handler."""
    names = sorted(one for one in known if not one.startswith("~"))  # reserved: nobody enqueues it
    if not names:
        return f'Handler "{name}" not found; no handler is known: configure one, or start a node that has it.'
    shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (" …" if len(names) > MAX_NAMES_SHOWN else "")
    return f'Handler "{name}" not found; known are: {shown}.'


def _check_vars(spec: NewJob, signature: bytes | None) -> None:
    if signature is not None:
        check_spec_vars(spec.handler, msgspec.json.decode(spec.vars), signature)


def check_spec_vars(handler: str, values: Mapping[str, Any], signature: bytes | None) -> None:
    """Raises InvalidValue if these vars do not fit the handler's signature, if that is known."""
    fault = check_vars(signature, dict(values)) if signature is not None else None
    if fault is not None:
        scrub = Scrubber(redaction_of(signature), lambda: [dict(values)])
        raise InvalidValue(f"{handler}: {scrub(fault)}")


def check_waiting(tx: Tx, names: Iterable[str], config: Config, *, inserted: bool = False) -> None:
    """Raises TooManyWaiting if a job of each of these handlers would exceed its `max_waiting`.

    `inserted`: if those that the transaction has inserted already do.
    """
    for name, adding in Counter(names).items():
        handler = _bounded(name, config)
        if handler is None:
            continue
        room = handler.max_waiting - (0 if inserted else adding)
        if room < 0 or queries.waiting(tx, name, room + 1) > room:
            raise TooManyWaiting(
                f'Handler "{name}" has {handler.max_waiting} waiting jobs, its max_waiting: '
                f"retry later, or raise handlers.{name}.max_waiting."
            )


def _bounded(name: str, config: Config) -> HandlerConfig | None:
    handler = config.handlers.get(name)
    return handler if handler is not None and handler.max_waiting else None
