"""The jobs of a workflow or of a request's own graph: their keys, and what each of them may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workerd import clock
from workerd.config import text_validators as texts
from workerd.config import validators as v
from workerd.config.quantities import duration
from workerd.config.validators import Validator
from workerd.config.workflow_config import WAIT_HANDLER, WorkflowJob
from workerd.config.wrong_value import wrong
from workerd.errors import InvalidValue

_TIME = 'a delay such as "2h", or a time such as "2026-01-31T12:00:00+01:00"'


def _wait(value: Any) -> float | int:
    """Seconds (float), or a store time in microseconds (int)."""
    try:
        return duration(value)
    except InvalidValue:
        try:
            return clock.from_rfc3339(str(value))
        except ValueError:
            raise wrong(_TIME, value) from None


JOB_KEYS: dict[str, Validator] = {
    "name": texts.name,
    "handler": texts.unreserved_name,
    "needs": v.list_of(texts.name, "job names"),
    "vars": v.json_table,
    "on_error": v.choice("fail", "continue"),
    "wait": Validator(_wait, _TIME),
    "signal": texts.name,
    "timeout": v.duration_between(0.001, 365 * 86400.0),
    "on_timeout": v.choice("fail", "continue"),
}
_KINDS = ("handler", "wait", "signal")


def job_of(keys: Mapping[str, Any]) -> WorkflowJob:
    """The job with these keys, each converted by JOB_KEYS.

    Raises InvalidValue for keys that do not go together.
    """
    given = [kind for kind in _KINDS if kind in keys]
    if len(given) != 1:
        raise InvalidValue(f"expected one of handler, wait and signal, got {' and '.join(given) or 'none'}")
    if "signal" not in keys and {"timeout", "on_timeout"} & keys.keys():
        raise InvalidValue("expected timeout and on_timeout with a signal only")
    if "handler" not in keys and {"vars", "on_error"} & keys.keys():
        raise InvalidValue("expected vars and on_error with a handler only")
    wait = keys.get("wait")
    return WorkflowJob(
        name=keys["name"],
        handler=keys.get("handler", WAIT_HANDLER),
        needs=keys.get("needs", ()),
        vars=keys.get("vars", {}),
        on_error=keys.get("on_error", keys.get("on_timeout", "fail")),
        wait=wait if isinstance(wait, float) else None,
        until=wait if isinstance(wait, int) else None,
        signal=keys.get("signal", ""),
        timeout=keys.get("timeout"),
    )
