"""Which Host headers are served."""

from __future__ import annotations

import pytest

from workerd.gateway.hosts import HostRules
from workerd.gateway.problems import HTTPProblem

RULES = HostRules("127.0.0.1:8020", ["*.example.org:8443", "*.example.net", "one.example.com:9000"])


@pytest.mark.parametrize(
    "host",
    [
        "a.example.org:8443", "A.b.Example.Org:8443", "a.example.net", "a.example.net:1",
        "one.example.com:9000", "localhost:8020",
    ],
)  # fmt: skip
def test_served(host: str) -> None:
    """A port that an entry names is the only one under which its names are served."""
    RULES.check({"host": host})


@pytest.mark.parametrize(
    "host",
    [
        "a.example.org", "a.example.org:8444", "a.example.org:18443", ".example.org:8443", "example.org:8443",
        "evil.test:a.example.org:8443", "evil.test:a.example.net", "one.example.com", "",
    ],
)  # fmt: skip
def test_refused(host: str) -> None:
    """As any other name."""
    with pytest.raises(HTTPProblem) as caught:
        RULES.check({"host": host})
    assert caught.value.status == 403
