"""Run a handler in a test, with the same conversion and outcomes as in the daemon, without one.

outcome = workerd.testing.run(thumbnail, image="a.png")
assert outcome.status == "completed"
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from workerd import policy as workerd_policy
from workerd.config.model import HandlerConfig, IngesterConfig, Policy
from workerd.job import Claim, new_id
from workerd.messages import Assignment, Progressed
from workerd.outcome import RunResult
from workerd.pool import loading
from workerd.pool.executor import Executor


@dataclass(frozen=True)
class RunOutcome:
    """How the run ended, in the words of the store.

    status
        `completed`, `failure`, `retry` or `cancelled`. `reason`: `ok`, `error`, `failure`, `retry`, …
    payload
        What was returned: bytes as they are, anything else as it comes back from JSON.
    extras, spawn
        What a Result handed on, as it comes back from JSON.
    error, stack
        One line, and the traceback, of what it raised. `exception_classes`: its classes, nearest first.
    retry_after
        Seconds until the next attempt, None if there is none.
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


class _Flags:
    """What a pool's page would say: nothing is cancelled, nothing stops unless asked for."""

    serial = 1
    cancel = False

    def __init__(self, deadline: float, stopping: bool) -> None:
        self.soft_deadline_ns = time.monotonic_ns() + int(deadline * 1e9) if deadline else 0
        self.stopping = stopping


def run(handler: Any, /, **vars: Any) -> RunOutcome:
    """Run a handler once: a function, a class with `ensure`, or its "module:attribute".

    The vars go through JSON as they would on the way through the store; TypeError if they cannot. What the
    handler raises is in the outcome, not raised. LoadError if it could not be a handler.
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
    stopping: bool = False,
) -> RunOutcome:
    """The same as `run`, with more of the context said.

    `failures`: of earlier attempts, by default all of them. `params`, `extras` and `needs` put the run inside
    a request. The deadline is told to the handler by `ctx`, and not kept by force.
    """
    target = loading.resolve(handler) if isinstance(handler, str) else handler
    name = getattr(target, "__name__", type(target).__name__)
    loaded = loading.make(name, target)
    policy = workerd_policy.effective(HandlerConfig(name=name, call="", pool=name), loaded.spec.options)
    in_request = params is not None or extras is not None or needs is not None
    claim = Claim(
        id=new_id(),
        attempt=attempt,
        claimed_at=0,
        mono=time.monotonic_ns(),
        handler=name,
        vars=_json(vars),
        run_at=0,
        meta=None if meta is None else _json(meta),
        failures=attempt - 1 if failures is None else failures,
        request_id=new_id() if in_request else None,
        params=_json(params or {}) if in_request else None,
        extras=_json(extras or {}) if in_request else None,
        needs={key: _json(value) for key, value in (needs or {}).items()} if in_request else None,
    )
    ending = _execute(loaded, claim, policy.deadline, stopping)
    return _outcome(ending, claim, policy, loaded.spec.aliases)


def _execute(loaded: loading.LoadedHandler, claim: Claim, deadline: float, stopping: bool) -> RunResult:
    executor = Executor({claim.handler: loaded}, _Flags(deadline, stopping), _unheard)
    executor.prepare(None)
    return executor.run(Assignment(1, claim, deadline, _MAX_PAYLOAD))


_MAX_PAYLOAD = IngesterConfig().max_payload


def _unheard(progress: Progressed) -> None:
    """The last word is in the ending; nobody listens before."""


def _outcome(ending: RunResult, claim: Claim, policy: Policy, aliases: Mapping[str, str]) -> RunOutcome:
    decision = workerd_policy.decide(policy, claim, ending, aliases=aliases)
    return RunOutcome(
        status=decision.status.value,
        reason=decision.reason.value,
        success=decision.success,
        payload=_value(ending.payload) if ending.payload_type == "json" else ending.payload,
        payload_type=ending.payload_type,
        extras=_value(ending.extras),
        spawn=_value(ending.spawn),
        error=ending.error,
        stack=ending.stack,
        exception_classes=ending.classes,
        retry_after=None if decision.next is None else decision.next.delay_us / 1e6,
        progress=ending.progress,
        note=ending.note,
    )


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _value(data: bytes | None) -> Any:
    return None if data is None else msgspec.json.decode(data)
