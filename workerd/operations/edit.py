"""Change a job that waits, or give the next attempt of an ended one other vars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from workerd.config.model import Config
from workerd.errors import InvalidValue
from workerd.group import GroupTemplate, parse_template
from workerd.job import id_text
from workerd.job_spec import JobSpec, NewJob, check
from workerd.operations import audit
from workerd.operations.actor import Actor
from workerd.operations.audit import Action
from workerd.operations.enqueue import check_spec_vars
from workerd.signature import coerce_texts
from workerd.store import handlers, job_control
from workerd.store.base import Tx

REMOVED = "null"
"""The text that removes one of the vars."""


class Edit(NamedTuple):
    """What changes. `vars`: merged key by key, None removes one; `group`: None removes it, if given."""

    vars: Mapping[str, Any] = {}
    priority: int | None = None
    run_at: str | None = None
    group: str | None = None
    group_given: bool = False


def edit(tx: Tx, actor: Actor, config: Config, job_id: bytes, change: Edit) -> None:
    """Change a job that waits. Raises NotFound, Conflict if it does not wait, InvalidValue."""
    if change == Edit():
        raise InvalidValue("expected something to change: vars, priority, run_at or group; got nothing")
    _checked(tx, config, "any", None, change._replace(vars={}))  # wrong values are wrong in every state
    job = job_control.lock_waiting(tx, job_id)
    new = _checked(tx, config, job.handler, job.vars, change)
    values: dict[str, Any] = {}
    if change.vars:
        kept = job._replace(group=None) if change.group_given else job
        values |= _values_of_vars(config, kept, new.vars)
    if change.priority is not None:
        values["priority"] = new.priority
    if change.group_given:
        values["group_key"] = new.group_key
    job_control.change_waiting(tx, job, values, new.run_at)
    detail: dict[str, Any] = {"vars": sorted(change.vars)} if change.vars else {}
    for name in ("priority", "run_at"):
        if (value := getattr(change, name)) is not None:
            detail[name] = value
    if change.group_given:
        detail["group"] = change.group
    audit.record(tx, actor, Action.EDIT, id_text(job_id), detail)


def retry_vars(tx: Tx, config: Config, job_id: bytes, changed: Mapping[str, Any]) -> None:
    """Give the attempt that a retry has just made other vars, merged as those of an edit."""
    job = job_control.lock_waiting(tx, job_id)
    new = _checked(tx, config, job.handler, job.vars, Edit(vars=changed))
    job_control.change_waiting(tx, job, _values_of_vars(config, job, new.vars), None)


def _values_of_vars(config: Config, job: job_control.WaitingJob, new: bytes) -> dict[str, Any]:
    """The columns that follow from new vars. Raises InvalidValue if they give no group where the old did."""
    values: dict[str, Any] = {"vars": new.decode()}
    handler = config.handlers.get(job.handler)
    if handler is not None and handler.group:
        template = parse_template(handler.group)
        if job.group is not None and job.group == _filled(template, job.vars):
            values["group_key"] = template.fill(new)
    return values


def _filled(template: GroupTemplate, vars_: bytes | None) -> str | None:
    try:
        return template.fill(vars_ or b"{}")
    except InvalidValue:
        return None


def values_of(tx: Tx, job_id: bytes, texts: Mapping[str, str]) -> dict[str, Any]:
    """Vars of `key=value` texts, by the signature of the job's handler; REMOVED is None."""
    return coerced(tx, job_control.handler_of(tx, job_id), texts)


def coerced(tx: Tx, handler: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """The same by the signature of a handler."""
    signature = handlers.known(tx).get(handler)
    kept = {name: text for name, text in texts.items() if text != REMOVED}
    return {**dict.fromkeys(texts), **coerce_texts(signature, kept)}


def merged_vars(tx: Tx, config: Config, handler: str, vars_: bytes, texts: Mapping[str, str]) -> bytes:
    """Vars with `key=value` texts merged, as an edit would. Raises InvalidValue."""
    values = coerced(tx, handler, texts)
    return _checked(tx, config, handler, vars_, Edit(vars=values)).vars


def _checked(tx: Tx, config: Config, handler: str, vars_: bytes | None, change: Edit) -> NewJob:
    values = _merged(vars_, change.vars) if change.vars else {}
    if change.vars:
        check_spec_vars(handler, values, handlers.known(tx).get(handler))
    spec = JobSpec(
        handler=handler, vars=values, priority=change.priority or 0, run_at=change.run_at, group=change.group
    )
    return check(spec, config.gateway.max_body)


def _merged(vars_: bytes | None, changed: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = msgspec.json.decode(vars_ or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidValue("vars: expected the job's vars to be a JSON object; these are none") from None
    merged = {**values, **changed}
    return {name: value for name, value in merged.items() if changed.get(name, True) is not None}
