"""Lines of the token file."""

from __future__ import annotations

import pytest

from workerd.config.token_file import Role, parse
from workerd.errors import InvalidValue


def test_a_line_names_the_owner_and_the_role() -> None:
    """A token alone is an operator's, named after its line."""
    tokens = parse(b"# people\nann operator s3cret\n\ncrm\tproducer  key-1\nold\ngrafana viewer v")
    assert [(token.name, token.role, token.secret) for token in tokens] == [
        ("ann", Role.OPERATOR, b"s3cret"),
        ("crm", Role.PRODUCER, b"key-1"),
        ("token-5", Role.OPERATOR, b"old"),
        ("grafana", Role.VIEWER, b"v"),
    ]
    assert len({token.id for token in tokens}) == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"ann admin SECRET", "a ROLE is one of producer, viewer, operator"),
        (b"ann Operator SECRET", "a ROLE is one of"),
        (b"ann operator", "got 2 words"),
        (b"ann operator SECRET more", "got 4 words"),
        (b"cli:ann operator SECRET", "a NAME is"),
        (b"\xff operator SECRET", "a NAME is"),
        (b"bob viewer first", "line 1 too"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(line: bytes, said: str) -> None:
    """The whole file is refused for it; the message has its number."""
    with pytest.raises(InvalidValue, match="line 2") as caught:
        parse(b"first\n" + line + b"\nthird\n")
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)
