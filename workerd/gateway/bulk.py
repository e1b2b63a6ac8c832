"""The routes that cancel or retry all jobs that a filter means."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from workerd.errors import StoreError
from workerd.gateway import bodies, params
from workerd.gateway.problems import HTTPProblem, problem_of
from workerd.gateway.roles import Access, Route
from workerd.gateway.state import actor_of, gateway_of, json_response, only_post
from workerd.job import Status
from workerd.job_filter import JobFilter
from workerd.operations.bulk import Act, Search, change
from workerd.outcome import Reason

MAX_CHANGED = 100_000
"""Jobs that one request changes; of more the first of them."""


class FilterBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which jobs are meant, by at least one key. `error`: a fingerprint; `meta`: texts by key."""

    handler: bodies.Name | None = None
    status: Status | None = None
    since: bodies.Moment | None = None
    until: bodies.Moment | None = None
    reason: Reason | None = None
    error: bodies.Fingerprint | None = None
    group: bodies.Name | None = None
    request: bodies.Identity | None = None
    meta: dict[str, str] | None = None

    def wanted(self) -> JobFilter:
        """The filter. Raises HTTPProblem 422."""
        return JobFilter(
            handler=self.handler,
            status=self.status,
            since=None if self.since is None else params.parsed_moment(self.since, "since"),
            until=None if self.until is None else params.parsed_moment(self.until, "until"),
            reason=self.reason,
            error=None if self.error is None else params.parsed_fingerprint(self.error),
            group=self.group,
            request=None if self.request is None else params.parsed_identity(self.request, "request"),
            meta=self.meta,
        )


class CancelJobsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which jobs to cancel, without `status` those that have not ended.

    `limit`: of those that match the first so many, newest due first; `dry_run`: only count them.
    """

    filter: FilterBody
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHANGED)] | None = None
    dry_run: bool = False


class RetryJobsBody(CancelJobsBody):
    """Which jobs to run again, without `status` those that failed.

    `limit`: of those that match the first so many, newest due first; `dry_run`: only count them; `fresh`:
    without what earlier attempts have saved.
    """

    fresh: bool = False


async def cancel(request: Request) -> Response:
    """Cancel all jobs that match; running ones are asked to stop."""
    return await _act(request, Act.CANCEL, await bodies.read_body(request, CancelJobsBody))


async def retry(request: Request) -> Response:
    """Run all jobs that match again."""
    body = await bodies.read_body(request, RetryJobsBody)
    return await _act(request, Act.RETRY, body, fresh=body.fresh)


async def _act(request: Request, act: Act, body: CancelJobsBody, *, fresh: bool = False) -> Response:
    gateway, actor = gateway_of(request), actor_of(request)
    limit = MAX_CHANGED if body.limit is None else body.limit
    search = Search(act, body.filter.wanted(), limit=limit, rules=gateway.rules)
    while not search.is_over:
        search.add(await gateway.backend.read(search.look))
    done = 0
    for refs in [] if body.dry_run else search.slices():
        try:
            done += await gateway.backend.write(
                partial(change, actor=actor, search=search, refs=refs, fresh=fresh)
            )
        except (StoreError, HTTPProblem) as error:
            raise _incomplete(problem_of(error, request.scope["path"]), search, done) from None
    return json_response({"matched": search.matched, "done": done})


def _incomplete(problem: HTTPProblem, search: Search, done: int) -> HTTPProblem:
    """The problem that ended it between two slices, with how far it went."""
    if not done:
        return problem
    detail = f"{done:,} of {search.matched:,} jobs were done before this: {problem.detail}"
    members = {**problem.members, "matched": search.matched, "done": done}
    return HTTPProblem(problem.status, detail, problem.headers, **members)


ROUTES = [
    Route("/jobs/cancel", cancel, methods=["POST"], access=Access.ACT),
    Route("/jobs/retry", retry, methods=["POST"], access=Access.ACT),
    # Otherwise these words would be taken for ids.
    Route("/jobs/cancel", only_post, methods=["GET", "PATCH"], access=Access.OPEN),
    Route("/jobs/retry", only_post, methods=["GET", "PATCH"], access=Access.OPEN),
]
