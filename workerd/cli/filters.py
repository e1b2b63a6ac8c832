"""The options by which commands choose jobs: one JobFilter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from workerd import outcome
from workerd.cli.options import (
    HandlerFilter,
    SinceFilter,
    parse_fingerprint,
    parse_identity,
    parse_meta,
    parse_reason,
    parse_since,
    parse_status,
)
from workerd.job import Status
from workerd.job_filter import JobFilter

StatusFilter = Annotated[
    Status | None,
    typer.Option(
        "--status",
        metavar="S",
        parser=parse_status,
        help="Only jobs in this state: scheduled, new, inprogress, completed, failure or cancelled.",
    ),
]
ReasonFilter = Annotated[
    outcome.Reason | None,
    typer.Option(
        "--reason",
        metavar="R",
        parser=parse_reason,
        help="Only jobs whose latest attempt ended with this reason: failure, deadline, oom, crashed, lost …",
    ),
]
ErrorFilter = Annotated[
    bytes | None,
    typer.Option(
        "--error",
        metavar="FP",
        parser=parse_fingerprint,
        help="Only jobs that failed with this error: its fingerprint, as `workerd errors` shows it.",
    ),
]
GroupFilter = Annotated[str | None, typer.Option("--group", metavar="G", help="Only jobs of this group.")]
RequestFilter = Annotated[
    bytes | None,
    typer.Option("--request", metavar="ID", parser=parse_identity, help="Only jobs of this request."),
]
MetaFilter = Annotated[
    list[Any] | None,
    typer.Option(
        "--meta",
        metavar="KEY=VALUE",
        parser=parse_meta,
        help="Only jobs whose meta has this text for this key; may be repeated.",
    ),
]
UntilFilter = Annotated[
    int | None,
    typer.Option(
        "--until",
        metavar="T",
        parser=parse_since,
        help="Only what was created before this time, given as for --since.",
    ),
]

FILTERS: dict[str, Any] = {
    "handler": HandlerFilter, "status": StatusFilter, "since": SinceFilter, "until": UntilFilter,
    "reason": ReasonFilter, "error": ErrorFilter, "group": GroupFilter, "request": RequestFilter,
    "meta": MetaFilter,
}  # fmt: skip
"""The options, by field of JobFilter."""


def with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """The command with all filters as options in place of its parameter `wanted`, a JobFilter."""

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in FILTERS}
        command(*args, wanted=JobFilter(**{**given, "meta": dict(given["meta"] or []) or None}), **kwargs)

    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(command, eval_str=True).parameters.values():
        parameters += [own] if own.name != "wanted" else map(_option, FILTERS)
    with_options.__dict__["__signature__"] = inspect.Signature(parameters)
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options


def _option(name: str) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind, default=None, annotation=FILTERS[name])
