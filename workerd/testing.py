"""Runs a handler in a test with the conversion and outcomes of the daemon, but without a daemon.

outcome = workerd.testing.run(thumbnail, image="a.png")
assert outcome.status == "completed"
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from workerd import policy as workerd_policy
from workerd.config.handler_config import HandlerConfig, Policy
from workerd.config.model import IngesterConfig
from workerd.job import Claim, new_id
from workerd.json_text import encode
from workerd.messages import Traced
from workerd.outcome import RunResult
from workerd.pool import loading
from workerd.pool.executor import Executor
from workerd.pool.handler_log import StandardErrorLog
from workerd.pool.worker_messages import Assignment, Progressed
from workerd.saved_state import SavedDocument, SavedState
from workerd.wrapping import Around, check_around


@dataclass(frozen=True)
class RunOutcome:
    """How the run ended, in the terms of the store.

    status
        `completed`, `failure`, `retry` or `cancelled`. `reason`: `ok`, `error`, `failure`, `retry`, …
    payload
        What was returned: bytes unchanged, anything else as decoded from JSON.
    extras, spawn
        What a Result passed on, as decoded from JSON.
    saved, steps
        What `ctx.saved` and `ctx.step` have for the next attempt; nothing after a success.
    error, stack
        What it raised: one line, and the traceback. `exception_classes`: most derived first.
    retry_after
        Seconds until the next attempt, None if none follows.
    """

    status: str
    reason: str
    success: bool | None
    payload: Any
    payload_type: str | None
    extras: dict[str, Any] | None
    spawn: list[Any] | None
    error: str | None
    stack: str | None
    exception_classes: tuple[str, ...]
    retry_after: float | None
    progress: float | None
    note: str | None
    saved: Any
    steps: Mapping[str, Any]


class _Flags:
    """Fixed flags: not cancelled, and stopping only on request."""

    serial = 1
    cancel = False
    interrupt = False

    def __init__(self, deadline: float, stopping: bool) -> None:
        self.soft_deadline_ns = time.monotonic_ns() + int(deadline * 1e9) if deadline else 0
        self.stopping = stopping


class _NoPool:
    """Takes what a run sends to its pool."""

    state: bytes | None = None

    def send(self, message: Progressed | Traced) -> None:
        """The result carries the last progress."""

    def keep(self, serial: int, state: bytes, wait: bool) -> None:
        self.state = state


def run(handler: Any, /, **vars: Any) -> RunOutcome:
    """Run a handler once: a function, a class with `ensure`, or its "module:attribute".

    The vars are encoded as JSON and decoded, as by the store. What the handler raises is in the outcome.
    Raises TypeError for vars that JSON cannot represent, LoadError for what cannot be a handler.
    """
    return attempt(handler, vars)


def attempt(
    handler: Any,
    vars: Mapping[str, Any],
    *,
    attempt: int = 1,
    failures: int | None = None,
    meta: Any = None,
    params: Mapping[str, Any] | None = None,
    extras: Mapping[str, Any] | None = None,
    needs: Mapping[str, Any] | None = None,
    failed: Sequence[str] = (),
    saved: Any = None,
    steps: Mapping[str, Any] | None = None,
    stopping: bool = False,
    replay: bool = False,
    around: Iterable[Around] = (),
) -> RunOutcome:
    """Run a handler once, as `run` does, with more of its context.

    `failures`: failed earlier attempts, by default all of them. `params`, `extras` and `needs` put the run
    in a request, a signal's payload as a need; `failed` names the needs that failed.
    `saved`, `steps`: what earlier attempts saved, and what their steps returned. `replay`: what `ctx.replay`
    is. `around`: functions around the run, as the key of the configuration. The deadline is visible in `ctx`
    but not enforced. Raises TypeError and LoadError as `run`, InvalidValue for a wrong `around`.
    """
    target = loading.resolve(handler) if isinstance(handler, str) else handler
    name = getattr(target, "__name__", type(target).__name__)
    layers = tuple(around)
    for function in layers:
        check_around(function)
    loaded = loading.make(name, target, around=layers)
    policy = workerd_policy.effective(HandlerConfig(name=name, call="", pool=name), loaded.spec.options)
    in_request = params is not None or extras is not None or needs is not None
    claim = Claim(
        id=new_id(),
        attempt=attempt,
        claimed_at=0,
        mono=time.monotonic_ns(),
        handler=name,
        vars=encode("vars", vars),
        run_at=0,
        meta=None if meta is None else encode("meta", meta),
        failures=attempt - 1 if failures is None else failures,
        request_id=new_id() if in_request else None,
        params=encode("params", params or {}) if in_request else None,
        extras=encode("extras", extras or {}) if in_request else None,
        needs={key: encode(key, value) for key, value in (needs or {}).items()} if in_request else None,
        failed=list(failed) or None,
        state=encode("saved", SavedDocument(saved, dict(steps or {}))),
    )
    pool = _NoPool()
    executor = Executor({name: loaded}, _Flags(policy.deadline, stopping), pool, StandardErrorLog(), replay)
    executor.prepare(None)
    result = executor.run(Assignment(1, claim, policy.deadline, _MAX_PAYLOAD))
    return _outcome(result, claim, policy, loaded.spec.aliases, pool.state)


_MAX_PAYLOAD = IngesterConfig().max_payload


def _outcome(
    result: RunResult, claim: Claim, policy: Policy, aliases: Mapping[str, str], state: bytes | None
) -> RunOutcome:
    outcome = workerd_policy.decide(policy, claim, result, aliases=aliases, state=state)
    assert outcome.reason is not None
    kept = SavedState(claim.state if outcome.state is None else outcome.state, _keep_nothing)
    return RunOutcome(
        status=outcome.status.value,
        reason=outcome.reason.value,
        success=outcome.success,
        payload=_value(result.payload) if result.payload_type == "json" else result.payload,
        payload_type=result.payload_type,
        extras=_value(result.extras),
        spawn=_value(result.spawn),
        error=result.error,
        stack=result.stack,
        exception_classes=result.classes,
        retry_after=None if outcome.next is None else outcome.next.delay_us / 1e6,
        progress=result.progress,
        note=result.note,
        saved=kept.saved,
        steps=kept.steps,
    )


def _keep_nothing(state: bytes, wait: bool) -> None:
    """Nothing is saved after the run."""


def _value(data: bytes | None) -> Any:
    return None if data is None else msgspec.json.decode(data)
