"""Checking vars by a stored signature, without the handler."""

from __future__ import annotations

from typing import Any

import pytest

from workerd.pool.arguments import Arguments
from workerd.signature import check_vars, coerce_texts


def thumbnail(image: str, width: int = 200) -> None: ...


SIGNATURE = Arguments(thumbnail).signature


@pytest.mark.parametrize(
    ("vars", "message"),
    [
        ({"image": "a"}, None),
        ({"image": "a", "width": 1}, None),
        ({}, "vars.image: required, but not given"),
        ({"image": "a", "width": 1.5}, "vars.width: expected int, got float"),
        ({"image": "a", "x": 1}, "vars.x: not known; the handler takes image, width"),
    ],
)
def test_vars_are_checked_by_the_signature_alone(vars: dict[str, Any], message: str | None) -> None:
    """The enqueuing process does not have the handler."""
    assert check_vars(SIGNATURE, vars) == message


@pytest.mark.parametrize("signature", [None, b"", b"[]", b"\xff", b'{"params": 3}'])
def test_an_unreadable_signature_accepts_anything(signature: bytes | None) -> None:
    """It may be of a later version; the worker checks anyway."""
    assert check_vars(signature, {"x": 1}) is None


def test_a_code_of_a_later_version_accepts_anything() -> None:
    """Nodes of two versions may share a store."""
    signature = b'{"params": [{"name": "a", "code": ["tensor", 3]}, {"name": "b", "code": "qubit"}]}'
    assert check_vars(signature, {"a": 1, "b": 2}) is None
    assert "vars.c" in str(check_vars(signature, {"c": 1}))


def test_command_line_texts_become_values() -> None:
    """JSON where it parses; text where the signature says str, or else."""
    texts = {"image": "123", "width": "123", "more": "[1]", "other": "hello", "cut": '"x'}
    assert coerce_texts(SIGNATURE, texts) == {
        "image": "123",
        "width": 123,
        "more": [1],
        "other": "hello",
        "cut": '"x',
    }
    assert coerce_texts(None, {"image": "123", "x": "\udcff"}) == {"image": 123, "x": "\udcff"}
