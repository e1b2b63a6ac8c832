"""Request bodies and query parameters, checked before anything is done."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import Request

from workerd import clock
from workerd.config.validators import duration
from workerd.gateway.problems import HTTPProblem
from workerd.job import NAME_LIMIT, Status, parse_id
from workerd.job_spec import JobSpec

T = TypeVar("T")
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
"""Rows of one page at the most."""
MAX_BULK_JOBS = 10_000
"""Jobs of one bulk at the most."""
MAX_WAIT_S = 300.0
"""Seconds of one long poll at the most."""


DURATION_PATTERN = r"^\s*[0-9]{1,20}(\.[0-9]{1,20})?\s*(ms|s|m|h|d)?\s*$"
MOMENT_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
)


def _told(**schema: Any) -> msgspec.Meta:
    """What /schema says beyond what the decoder checks; JobSpec checks it, with better words."""
    return msgspec.Meta(extra_json_schema=schema)


Name = Annotated[str, _told(minLength=1, maxLength=NAME_LIMIT)]
Key = Annotated[str, _told(minLength=1, maxLength=NAME_LIMIT, pattern="^[^~]")]
Seconds = Annotated[float, _told(minimum=0, maximum=2_000_000)]
Duration = Seconds | Annotated[str, _told(pattern=DURATION_PATTERN)]
Moment = Annotated[str, _told(format="date-time", pattern=MOMENT_PATTERN)]
Priority = Annotated[int, _told(minimum=-(2**31), maximum=2**31 - 1)]
Attempts = Annotated[int, _told(minimum=1, maximum=2**31 - 1)]


class JobBody(msgspec.Struct, forbid_unknown_fields=True):
    """A job to enqueue. Durations: seconds, or text such as "30s". `run_at`: RFC 3339 with an offset."""

    handler: Name
    vars: dict[str, Any] = {}
    delay: Duration | None = None
    run_at: Moment | None = None
    priority: Priority = 0
    unique_key: Key | None = None
    deadline: Duration | None = None
    max_attempts: Attempts | None = None
    meta: Any = None

    def spec(self, job_id: str | None = None) -> JobSpec:
        """The same in the client's terms."""
        return JobSpec(
            handler=self.handler,
            vars=self.vars,
            id=job_id,
            delay=self.delay,
            run_at=self.run_at,
            priority=self.priority,
            unique_key=self.unique_key,
            deadline=self.deadline,
            max_attempts=self.max_attempts,
            meta=self.meta,
        )


class JobsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Jobs to enqueue, all or none."""

    jobs: list[JobBody]


class RequestBody(msgspec.Struct, forbid_unknown_fields=True):
    """A request to begin."""

    workflow: Name
    params: dict[str, Any] = {}


class PauseBody(msgspec.Struct, forbid_unknown_fields=True):
    """Why a handler is held back."""

    reason: str | None = None


class EmptyBody(msgspec.Struct, forbid_unknown_fields=True):
    """An empty object; an empty body is as good."""


class LoginBody(msgspec.Struct, forbid_unknown_fields=True):
    """A token of `gateway.token_file`."""

    token: str


async def body(request: Request, kind: type[T]) -> T:
    """The body as a checked document.

    Raises Problem 415 for another kind of content, which no page of another site can send as JSON without
    being asked; 400 for what is no JSON, 422 for what does not fit.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPProblem(
            415, "A body of Content-Type application/json is expected.", {"Accept": "application/json"}
        )
    data = await request.body()
    if not data.strip() and kind in (EmptyBody, PauseBody):
        data = b"{}"
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise HTTPProblem(422, _sentence(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPProblem(400, f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        raise HTTPProblem(400, "The body is nested too deeply.") from None


def _sentence(text: str) -> str:
    # msgspec names the place as `$.jobs[3].handler`; people know it without the dollar.
    return re.sub(r" - at `\$\.?(.*?)`$", r" at `\1`", text)


def job_id(request: Request) -> bytes:
    """The id in the path. Raises Problem 404: what is no id names no job."""
    try:
        return parse_id(request.path_params["id"])
    except ValueError as error:
        raise HTTPProblem(404, f"There is nothing with this id: {error}.") from None


def limit(request: Request) -> int:
    """`limit` of a list. Raises Problem 422."""
    text = request.query_params.get("limit")
    if text is None:
        return DEFAULT_PAGE_SIZE
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MAX_PAGE_SIZE or len(text) > 9:
        raise HTTPProblem(422, f"limit: expected a whole number from 1 to {MAX_PAGE_SIZE}.")
    return int(text)


def status(request: Request) -> Status | None:
    """`status` of a list of jobs. Raises Problem 422."""
    text = request.query_params.get("status")
    if text is None:
        return None
    try:
        return Status(text)
    except ValueError:
        raise HTTPProblem(422, f"status: expected one of {', '.join(Status)}.") from None


def since(request: Request) -> int | None:
    """`since` of a list, as store time. Raises Problem 422."""
    text = request.query_params.get("since")
    if text is None:
        return None
    try:
        return clock.from_rfc3339(text)
    except ValueError as error:
        raise HTTPProblem(422, f"since: {error}.") from None


def text(request: Request, name: str) -> str | None:
    """A filter of a list that is a name. Raises Problem 422 for an empty one, which is hardly meant."""
    value = request.query_params.get(name)
    if value is not None and not 0 < len(value) <= NAME_LIMIT:
        raise HTTPProblem(422, f"{name}: expected 1 to {NAME_LIMIT} characters.")
    return value


def cursor(request: Request) -> str | None:
    """`after` of a list: checked where it is read."""
    return request.query_params.get("after")


def wait(request: Request) -> float:
    """`wait` of a look-up, seconds; 0 for none. Raises Problem 422."""
    text = request.query_params.get("wait")
    if text is None:
        return 0.0
    try:
        return min(duration(float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else text), MAX_WAIT_S)
    except ValueError as error:
        raise HTTPProblem(422, f"wait: {error}.") from None
