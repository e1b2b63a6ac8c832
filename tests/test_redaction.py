"""Redaction: paths, texts, and how both meet values of any shape."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.errors import InvalidValue
from workerd.redaction import REDACTED, Redaction, Scrubber, checked_path, scrubber_of

VARS = {
    "user": "ann",
    "password": "correct horse",
    "card": {"number": 4111111111111111, "name": "Ann", "more": {"cvc": "123"}},
    "accounts": [{"token": "t-12345678", "id": 7}, {"token": None}],
}


def test_matching_values_are_replaced() -> None:
    """A path names one place, `*` one level of it; what does not match stays."""
    redaction = Redaction(["password", "card.*", "accounts.*.token", "nowhere.at.all"])
    before = json.dumps(VARS)
    assert redaction.shown(VARS) == {
        "user": "ann",
        "password": REDACTED,
        "card": {"number": REDACTED, "name": REDACTED, "more": REDACTED},
        "accounts": [{"token": REDACTED, "id": 7}, {"token": REDACTED}],
    }
    assert json.dumps(VARS) == before
    assert Redaction(["*.number"]).shown(VARS)["card"]["number"] == REDACTED
    assert Redaction(["accounts.1"]).shown(VARS)["accounts"][1] == REDACTED
    assert Redaction(["number", "user.x"]).shown(VARS) == VARS
    assert not Redaction()


def test_text_that_is_no_json_is_not_shown() -> None:
    """Nobody knows what is in it."""
    assert Redaction(["a"]).shown_json(b"{oops") == b'"[redacted]"'
    assert Redaction().shown_json(b"{oops") == b"{oops"
    assert json.loads(Redaction(["a"]).shown_json(b'{"a":1,"b":2}')) == {"a": REDACTED, "b": 2}


@pytest.mark.parametrize(
    "path", ["", "a..b", ".a", "a.", "pass(word|wd)", ".*secret", "^a$", "a b", "pass*", "[a-z]", 7, None]
)
def test_wrong_paths(path: Any) -> None:
    """A regular expression is refused: it would match nothing, and nobody would know."""
    with pytest.raises(InvalidValue, match="no regular expression"):
        checked_path(path)


@pytest.mark.parametrize("path", ["a", "a.b", "*", "*.token", "card.*", "x-y_z", "größe", "accounts.0.token"])
def test_right_paths(path: str) -> None:
    assert checked_path(path) == path


def scrubber(**values: Any) -> Scrubber:
    return scrubber_of(Redaction(["*"]), json.dumps(values).encode())


def test_values_in_texts() -> None:
    """As they are, escaped by repr or JSON, encoded for an address, a line of several; numbers too."""
    secret = "pa'ss\"wörd\n2nd line of it"
    scrub = scrubber(a=secret, b=4111111111111111, c=["deep-secret"])
    for text in (secret, repr(secret), json.dumps(secret), json.dumps(secret, ensure_ascii=False)):
        shown = scrub(f"before {text} after")
        assert "wör" not in shown
        assert "2nd line" not in shown
        assert "before" in shown
        assert "after" in shown
    assert scrub("card 4111111111111111!") == f"card {REDACTED}!"
    assert scrub("x 2nd line of it") == f"x {REDACTED}"
    assert scrub("deep-secret") == REDACTED
    assert scrub("?p=pa%27ss%22w%C3%B6rd%0A2nd%20line%20of%20it") == f"?p={REDACTED}"
    assert scrub("nothing of it") == "nothing of it"


def test_what_was_shown_is_given_back_with_the_stored_values() -> None:
    """In place of each mark at a path that is redacted; everything else is as it is given."""
    redaction = Redaction(["password", "card.*", "accounts.*.token"])
    shown = redaction.shown(VARS)
    assert redaction.restored(shown, VARS) == VARS
    given = {**shown, "user": REDACTED, "password": "new one", "accounts": []}
    expected = {**VARS, "user": REDACTED, "password": "new one", "accounts": []}
    assert redaction.restored(given, VARS) == expected
    nameless = {"card": {"": "4111111111111111"}}
    assert redaction.restored(redaction.shown(nameless), nameless) == nameless
    assert Redaction().restored({"password": REDACTED}, VARS) == {"password": REDACTED}


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"password": REDACTED}, "password"),
        ({"card": {"number": REDACTED}}, "card.number"),
        ({"accounts": [{"token": REDACTED}]}, "accounts.0.token"),
    ],
)
def test_a_mark_that_stands_for_nothing_is_refused(given: dict[str, Any], place: str) -> None:
    """It would be taken for the value itself."""
    redaction = Redaction(["password", "card.*", "accounts.*.token"])
    for stored in ({}, {"card": 7, "accounts": [], "user": "ann"}, None):
        with pytest.raises(InvalidValue, match=f"^{place}: expected a value"):
            redaction.restored(given, stored)


def _forms(secret: str) -> list[str]:
    """What Python, PHP, Go, .NET, browsers and clients of HTTP make of it."""
    data = secret.encode()
    as_json = json.dumps(secret)[1:-1]
    capitals = re.sub(r"\\u[0-9a-f]{4}", lambda found: f"\\u{found[0][2:].upper()}", as_json)
    addresses = [quote(data, safe=bare) for bare in ("", "/", "!'()*", "/:@!$&'()*+,;=?")]
    addresses.append(quote_plus(data))
    return [
        secret, repr(secret), ascii(secret), repr(data), repr(secret + "'\""), repr(data + b"'\""),
        as_json, capitals, json.dumps(secret, ensure_ascii=False),
        as_json.replace("/", "\\/"), capitals.replace("/", "\\/"),
        as_json.replace("<", "\\u003c").replace("&", "\\u0026").replace("+", "\\u002B"),
        *addresses, *(re.sub("%..", lambda found: found[0].lower(), one) for one in addresses),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "secret",
    [
        "wJalrXUtnFEMI/K7MDENG/bPxRfi", "pässwörter", "пароль 4711", "😀 smiling", "a\tb'c\"d\\e",
        "<b>&+`%25=", "Ã\x83Ã\x83Ã\x83", "\x00\x1b[31m\x7f", "\\\\server\\share", "!first is special",
    ],
)  # fmt: skip
def test_values_as_other_programs_escape_them(secret: str) -> None:
    """Slashes, quotes, what is not ASCII, and what an address cannot have; hexadecimal digits of any case."""
    scrub = scrubber(a=secret)
    for form in _forms(secret):
        shown = scrub(f"<<{form}>>")
        assert REDACTED in shown, form
        assert re.fullmatch(r"<<b?['\"]?\[redacted\](\\?['\"]){0,3}>>", shown), (form, shown)


def test_text_of_backslashes_is_read_once() -> None:
    """No two ways to read an escape: else a text like this one would take years."""
    text = "\\" * 1000
    assert scrubber(a="\\" * 40 + "x")(text) == text
    assert scrubber(a="\\" * 40 + "x")(text + "x").startswith("\\" * 900)


def test_an_empty_name_is_a_name() -> None:
    """`*` stands for it, too."""
    redaction = Redaction(["card.*", "*.token"])
    shown = redaction.shown({"card": {"": "4111111111111111"}, "": {"token": "t-12345678", "": 1}})
    assert shown == {"card": {"": REDACTED}, "": {"token": REDACTED, "": 1}}
    assert scrubber(**{"": "the-secret"})("see the-secret") == f"see {REDACTED}"


def test_short_values_are_not_looked_for() -> None:
    """They would be found everywhere."""
    assert scrubber(a="12345", b=True, c=None)("12345 True None true null") == "12345 True None true null"
    assert scrubber(a="123456")("123456") == REDACTED


def test_too_many_values_hide_the_text() -> None:
    scrub = scrubber(**{f"k{n}": f"value-{n}" for n in range(2000)})
    assert scrub("harmless") == REDACTED
    assert scrub("") == ""
    assert scrub.in_bytes(b"one\n\ntwo\n")[0] == b"[redacted]\n\n[redacted]\n"


def test_a_long_text_keeps_both_ends_without_them() -> None:
    scrub = scrubber(a="the-secret")
    shown = scrub("the-secret" * 400_000)
    assert "secret" not in shown[:100_000]
    assert "secret" not in shown[-100_000:]


@given(st.text(min_size=6), st.text(), st.text())
def test_no_value_survives(secret: str, before: str, after: str) -> None:
    """Whatever stands around it; bytes that are no UTF-8 stay as they are."""
    if secret in REDACTED or any(form and form in REDACTED for form in (secret.strip(),)):
        return
    scrub = scrubber(a=secret)
    assert secret not in scrub(f"{before}{secret}{after}").replace(REDACTED, "")
    assert scrubber(a="the-secret").in_bytes(b"\xff the-secret \xfe")[0] == b"\xff [redacted] \xfe"
