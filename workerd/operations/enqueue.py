"""Enqueue checks: known handlers, vars that fit their signature, `max_waiting`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from workerd.config.model import Config, HandlerConfig
from workerd.documents import Enqueued
from workerd.errors import HandlerNotFound, InvalidValue, TooManyWaiting
from workerd.job import id_text
from workerd.job_spec import Checked
from workerd.signature import check_vars
from workerd.store import handlers, jobs, queries
from workerd.store.base import Tx

NAMES_SHOWN = 20


class Known:
    """The handlers that the store knew a moment ago, so that not every job asks for them again."""

    MOMENT = 1.0
    """Seconds. A new signature is missed for so long: then the attempt finds vars that do not fit."""

    def __init__(self) -> None:
        self._handlers: Mapping[str, bytes | None] = {}
        self._until = 0.0

    def ask(self, tx: Tx) -> Mapping[str, bytes | None]:
        """Ask the store."""
        asked = time.monotonic()
        self._handlers = handlers.known(tx)
        self._until = asked + self.MOMENT
        return self._handlers

    @property
    def recent(self) -> bool:
        """Whether it was asked a moment ago."""
        return time.monotonic() < self._until

    def admits(self, spec: Checked, config: Config) -> bool:
        """Whether this job may be enqueued, by what is known and with nothing else to look at."""
        return refusal(spec, self._handlers, config) is None


def is_plain(spec: Checked, config: Config) -> bool:
    """Whether nothing that is in the store can stand in the job's way."""
    return spec.plain and _bounded(spec.handler, config) is None


def admit(
    tx: Tx,
    specs: Sequence[Checked],
    config: Config,
    *,
    look: bool = True,
    known: Mapping[str, bytes | None] | None = None,
) -> list[Enqueued]:
    """Insert all jobs or none; `look` false leaves their vars to the attempts; `known`: if asked before.

    Raises HandlerNotFound, TooManyWaiting, InvalidValue for vars that do not fit a known signature.
    """
    if known is None:
        known = handlers.known(tx)
    check_handlers((spec.handler for spec in specs), known, config)
    if look:
        for spec in specs:
            _check_vars(spec, known.get(spec.handler))
    _check_waiting(tx, specs, config)
    return insert(tx, specs)


def refusal(spec: Checked, known: Mapping[str, bytes | None], config: Config) -> Exception | None:
    """Why this job alone may not be enqueued, None if it may; `max_waiting` is not looked at."""
    try:
        check_handlers([spec.handler], known, config)
        _check_vars(spec, known.get(spec.handler))
    except (HandlerNotFound, InvalidValue) as error:
        return error
    return None


def insert(tx: Tx, specs: Sequence[Checked]) -> list[Enqueued]:
    """Insert all jobs, unasked."""
    return [_enqueued(done) for done in jobs.insert(tx, [_new(spec) for spec in specs])]


def insert_alone(tx: Tx, spec: Checked) -> Enqueued:
    """Insert one plain job, unasked, in one statement."""
    return _enqueued(jobs.insert_alone(tx, _new(spec)))


def _new(spec: Checked) -> jobs.NewJob:
    return jobs.NewJob(
        handler=spec.handler,
        id=spec.id,
        vars=spec.vars,
        meta=spec.meta,
        priority=spec.priority,
        run_at=spec.run_at,
        delay=spec.delay_us,
        deadline_ms=spec.deadline_ms,
        max_attempts=spec.max_attempts,
        unique_key=spec.unique_key,
    )


def _enqueued(done: jobs.Inserted) -> Enqueued:
    return Enqueued(id_text(done.id), done.created)


def check_handlers(names: Iterable[str], known: Mapping[str, bytes | None], config: Config) -> None:
    """HandlerNotFound, with the names that are known, for one that neither config nor store know."""
    for name in dict.fromkeys(names):
        if name not in known and name not in config.handlers:
            raise HandlerNotFound(unknown(name, {*known, *config.handlers}))


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence for a handler that is not known."""
    names = sorted(known)
    if not names:
        return (
            f'There is no handler "{name}", and none is known at all: name one in the configuration, '
            f"or start a node that has it."
        )
    shown = ", ".join(names[:NAMES_SHOWN]) + (" …" if len(names) > NAMES_SHOWN else "")
    return f'There is no handler "{name}"; known are: {shown}.'


def _check_vars(spec: Checked, signature: bytes | None) -> None:
    if signature is None:
        return
    fault = check_vars(signature, msgspec.json.decode(spec.vars))
    if fault is not None:
        raise InvalidValue(f"{spec.handler}: {fault}")


def _check_waiting(tx: Tx, specs: Sequence[Checked], config: Config) -> None:
    for name, adding in Counter(spec.handler for spec in specs).items():
        handler = _bounded(name, config)
        if handler is None:
            continue
        room = handler.max_waiting - adding
        if room < 0 or queries.waiting(tx, name, room + 1) > room:
            raise TooManyWaiting(
                f'The handler "{name}" has {handler.max_waiting} jobs waiting, which is its max_waiting: '
                f"try again later, or raise handlers.{name}.max_waiting."
            )


def _bounded(name: str, config: Config) -> HandlerConfig | None:
    handler = config.handlers.get(name)
    return handler if handler is not None and handler.max_waiting else None
