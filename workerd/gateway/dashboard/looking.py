"""What a page is asked: by whom it is served, which one of its kind, with which filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from workerd.gateway.problems import Problem
from workerd.gateway.state import Gateway
from workerd.job import parse_id

ROWS = 50
"""Rows of a list on one page."""
CAP = 1_000
"""Counts on a page are followed up to here."""


@dataclass(frozen=True)
class Looking:
    """One look at a page. `ident`: what the path names."""

    gateway: Gateway
    query: Mapping[str, str]
    ident: str = ""

    def get(self, name: str) -> str:
        """A filter, "" if it is not set."""
        return self.query.get(name, "").strip()

    @property
    def after(self) -> str | None:
        """The cursor."""
        return self.get("after") or None

    def filters(self, *names: str) -> str:
        """Those of the filters that are set, URL-encoded."""
        return urlencode([(name, self.get(name)) for name in names if self.get(name)])

    @property
    def key(self) -> bytes:
        """The id that the path names. Raises Problem 404."""
        try:
            return parse_id(self.ident)
        except ValueError as error:
            raise Problem(404, f"There is nothing with this id: {error}.") from None
