"""Who sends a request, and which roles a route admits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import NamedTuple

from starlette import routing
from starlette.requests import Request
from starlette.responses import Response

from workerd import log
from workerd.config.token_file import Role
from workerd.gateway.problems import HTTPProblem

CALLER = "workerd.caller"
"""Key of the ASGI scope: the Caller; None on open paths, or where a page redirects to the login."""
LOCAL = "local"
"""Name of the caller where no tokens are configured."""

_log = log.get_logger("gateway")


class Access(Enum):
    """What a route is for, and the roles that it admits; OPEN: everybody, without a token."""

    OPEN = frozenset(Role)
    ENQUEUE = frozenset({Role.PRODUCER, Role.OPERATOR})
    LOOK_UP = frozenset({Role.PRODUCER, Role.VIEWER, Role.OPERATOR})
    READ = frozenset({Role.VIEWER, Role.OPERATOR})
    ACT = frozenset({Role.OPERATOR})

    # The enumeration would take LOOK_UP for a second name of OPEN, whose roles are the same.
    def __new__(cls, roles: frozenset[Role]) -> Access:
        member = object.__new__(cls)
        member._value_ = len(cls.__members__)
        member.roles = tuple(role for role in Role if role in roles)
        return member

    roles: tuple[Role, ...]


class Caller(NamedTuple):
    """Who sends a request. `token_id`: of its token, "" where none is required."""

    name: str
    role: Role
    token_id: str = ""

    def may(self, access: Access) -> bool:
        """Whether its role is admitted."""
        return self.role in access.roles


EVERYBODY = Caller(LOCAL, Role.OPERATOR)
"""The caller where no tokens are configured: anyone who reaches the gateway may do everything."""


class Route(routing.Route):
    """One path and its methods; `access`: who is admitted."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[[Request], Awaitable[Response]],
        *,
        methods: list[str],
        access: Access,
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.access = access


def caller_of(request: Request) -> Caller:
    """Who sends the request."""
    caller: Caller | None = request.scope.get(CALLER)
    # Without one, the guard has let it pass to a route that is open.
    return caller or Caller("", Role.PRODUCER)


def check_access(request: Request, access: Access) -> None:
    """Raises HTTPProblem 403 that names the roles that are admitted, if the caller's is not one of them."""
    caller: Caller | None = request.scope.get(CALLER)
    if caller is None or caller.may(access):
        return
    _log.warning("access.refused", name=caller.name, role=str(caller.role), path=request.scope["path"])
    raise refused(caller, access)


def refused(caller: Caller, access: Access) -> HTTPProblem:
    """The 403 of a role that is not admitted."""
    needed = " or ".join(access.roles)
    return HTTPProblem(403, f"Expected a token with the role {needed}; {caller.name} is a {caller.role}.")
