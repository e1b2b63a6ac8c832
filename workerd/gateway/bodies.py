"""Request bodies: what each may hold, and how it is read and decoded."""

from __future__ import annotations

import re
from types import GenericAlias
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from starlette.requests import ClientDisconnect, Request

from workerd import json_text
from workerd.errors import InvalidValue
from workerd.gateway.headers import headers_of
from workerd.gateway.problems import HTTPProblem
from workerd.job import NAME_LIMIT
from workerd.job_spec import OPTIONS, JobSpec

T = TypeVar("T")
JSON = "application/json"
MAX_BULK_JOBS = 10_000

DURATION_PATTERN = r"^\s*[0-9]{1,20}(\.[0-9]{1,20})?\s*(ms|s|m|h|d)?\s*$"
MOMENT_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
)
EXPIRES_PATTERN = f"({DURATION_PATTERN})|({MOMENT_PATTERN})"


def _schema(**schema: Any) -> msgspec.Meta:
    """Constraints for /schema only: JobSpec checks them, with better messages than the decoder."""
    return msgspec.Meta(extra_json_schema=schema)


Name = Annotated[str, _schema(minLength=1, maxLength=NAME_LIMIT)]
Key = Annotated[str, _schema(minLength=1, maxLength=NAME_LIMIT, pattern="^[^~]")]
Seconds = Annotated[float, _schema(minimum=0, maximum=2_000_000)]
Duration = Seconds | Annotated[str, _schema(pattern=DURATION_PATTERN)]
Moment = Annotated[str, _schema(format="date-time", pattern=MOMENT_PATTERN)]
Fingerprint = Annotated[str, _schema(pattern="^[0-9a-fA-F]{16}$")]
Identity = Annotated[str, _schema(format="uuid")]
Priority = Annotated[int, _schema(minimum=-(2**31), maximum=2**31 - 1)]
Attempts = Annotated[int, _schema(minimum=1, maximum=2**31 - 1)]


_JSON_TYPES: dict[str, Any] = {
    "duration": Duration | None,
    "time": Moment | None,
    "duration or time": Seconds | Annotated[str, _schema(pattern=EXPIRES_PATTERN)] | None,
    "priority": Priority,
    "count": Attempts | None,
    "key": Key | None,
    "name": Name | None,
    "conflict": Literal["keep", "replace", "debounce", "follow"] | None,
    "json": Any,
}


class JobFields(msgspec.Struct, forbid_unknown_fields=True):
    """What a job to enqueue needs; JobBody has the options too."""

    handler: Name
    vars: dict[str, Any] = {}

    def spec(self, job_id: str | None = None) -> JobSpec:
        """The JobSpec with this id."""
        return JobSpec(id=job_id, **msgspec.structs.asdict(self))


JobBody = cast(
    type[JobFields],
    msgspec.defstruct(
        "JobBody",
        [
            (name, _JSON_TYPES[option.kind], 0 if option.kind == "priority" else None)
            for name, option in OPTIONS.items()
        ],
        bases=(JobFields,),
        namespace={
            "__doc__": 'A job to enqueue. Durations are seconds or text such as "30s"; times are RFC 3339 '
            "with an offset."
        },
    ),
)


class JobsFields(msgspec.Struct, forbid_unknown_fields=True):
    """What JobsBody decodes to."""

    jobs: list[JobFields]


JobsBody = cast(
    type[JobsFields],
    msgspec.defstruct(
        "JobsBody",
        [("jobs", GenericAlias(list, (JobBody,)))],
        bases=(JobsFields,),
        namespace={"__doc__": "Jobs to enqueue; all or none are inserted."},
    ),
)


class GraphJob(msgspec.Struct, forbid_unknown_fields=True):
    """A job of a request's own graph: with a `handler`, or a `wait` or a `signal` in place of one."""

    name: Name
    handler: Name | None = None
    vars: dict[str, Any] | None = None
    needs: list[Name] | None = None
    on_error: Literal["fail", "continue"] | None = None
    wait: float | str | None = None
    signal: Name | None = None
    timeout: Duration | None = None
    on_timeout: Literal["fail", "continue"] | None = None


class RequestBody(msgspec.Struct, forbid_unknown_fields=True, rename={"finally_": "finally"}):
    """A request to submit: a run of a `workflow`, or `jobs` that make a graph of its own."""

    workflow: Name | None = None
    params: dict[str, Any] = {}
    jobs: list[GraphJob] | None = None
    then: list[GraphJob] | None = None
    finally_: list[GraphJob] | None = None
    name: Name | None = None
    max_failures: Annotated[int, _schema(minimum=0, maximum=2**31 - 1)] | None = None

    def graph(self) -> dict[str, Any]:
        """The request with its own graph, as `request_graphs` reads it."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in document.items() if value is not None and key != "workflow"}


SignalBody = msgspec.defstruct("SignalBody", [], namespace={"__doc__": "The payload of a signal: any JSON."})


class ScheduleBody(msgspec.Struct, forbid_unknown_fields=True):
    """A schedule to set: `handler` or `workflow`, `cron` or `cooler`. Durations are seconds or text."""

    handler: Name | None = None
    workflow: Name | None = None
    cron: str | None = None
    cooler: Duration | None = None
    vars: dict[str, Any] | None = None
    params: dict[str, Any] | None = None
    timezone: str | None = None
    misfire: Literal["skip", "once", "all"] | None = None
    overlap: Literal["allow", "skip", "queue"] | None = None
    jitter: Duration | None = None
    priority: Priority | None = None
    group: Name | None = None
    enabled: bool | None = None

    def given(self) -> dict[str, Any]:
        """The keys that were given."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


class PauseBody(msgspec.Struct, forbid_unknown_fields=True):
    """The reason of a pause, shown to operators."""

    reason: str | None = None


class UnholdBody(msgspec.Struct, forbid_unknown_fields=True):
    """The group whose hold ends; without one that of the whole limit."""

    group: str | None = None


class MuteBody(msgspec.Struct, forbid_unknown_fields=True):
    """How long an error group is muted."""

    seconds: Duration = msgspec.field(name="for")


class EmptyBody(msgspec.Struct, forbid_unknown_fields=True):
    """An empty object; an empty body is accepted too."""


class RetryBody(msgspec.Struct, forbid_unknown_fields=True):
    """How a job is run again; an empty body is accepted too. `fresh`: without what attempts have saved.

    `vars`: merged with those that it has, null removes one.
    """

    fresh: bool = False
    vars: dict[str, Any] | None = None


class EditBody(msgspec.Struct, forbid_unknown_fields=True):
    """What changes of a job that waits. `vars`: merged with those that it has, null removes one."""

    vars: dict[str, Any] | None = None
    priority: Priority | None = None
    run_at: Moment | None = None
    group: str | msgspec.UnsetType | None = msgspec.UNSET


class LoginBody(msgspec.Struct, forbid_unknown_fields=True):
    """A token of `gateway.token_file`."""

    token: str


_EMPTY: dict[Any, bytes] = {EmptyBody: b"{}", PauseBody: b"{}", RetryBody: b"{}", Any: b"null"}
"""What an empty body stands for."""


async def read_any_json(request: Request) -> Any:
    """The decoded body, any JSON, null if it is empty. Raises HTTPProblem as `read_body`."""
    return await read_body(request, cast(type[Any], Any))


async def read_body(request: Request, kind: type[T]) -> T:
    """The decoded body.

    Raises HTTPProblem: 415 unless the content type is JSON (a page of another site cannot send that without
    a preflight request), 400 for invalid JSON, 422 for JSON of another shape, or with NaN.
    """
    media_type = headers_of(request.scope).get("content-type", "")
    if media_type != JSON and media_type.partition(";")[0].strip().lower() != JSON:
        raise HTTPProblem(415, f"Expected a body with Content-Type: {JSON}.", {"Accept": JSON})
    data = await _received(request)
    if not data and kind in _EMPTY:
        data = _EMPTY[kind]
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        _refuse_non_finite(data)
        raise HTTPProblem(422, _without_dollar(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse_non_finite(data)
        raise HTTPProblem(400, f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        raise HTTPProblem(400, "The body is nested too deeply.") from None


async def _received(request: Request) -> bytes:
    """The whole body. Raises ClientDisconnect."""
    message = await request.receive()
    if not message.get("more_body") and message["type"] == "http.request":
        whole: bytes = message.get("body", b"")
        return whole
    parts = [message]
    while message.get("more_body"):
        parts.append(message := await request.receive())
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return b"".join([part.get("body", b"") for part in parts])


def _refuse_non_finite(data: bytes) -> None:
    """Raises HTTPProblem 422 for NaN, Infinity and 1e999, which some programs write and some read as null."""
    try:
        json_text.refuse_non_finite("body", data)
    except InvalidValue as error:
        raise HTTPProblem(422, f"{str(error).removeprefix('body.')}.") from None


def _without_dollar(text: str) -> str:
    # msgspec names the place as `$.jobs[3].handler`.
    return re.sub(r" - at `\$\.?(.*?)`$", r" at `\1`", text)
