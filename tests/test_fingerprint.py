"""Equal failures have one fingerprint, different ones have different ones."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd import fingerprint as f
from workerd.errors import InvalidValue
from workerd.pool import results


def fingerprint_of(raising: Callable[..., object], *args: Any) -> bytes:
    """As the worker and the pool compute it of what this raises."""
    try:
        raising(*args)
    except BaseException as error:
        result = results.raised(1, error, None, False)
        return f.fingerprint(
            "h", "error", f.public_name(result.classes[0]), result.error or "", result.frames
        )
    raise AssertionError("nothing was raised")


# -- the corpus: what programs really raise, with something that varies in each


def open_missing(n: int) -> None:
    Path(f"/nonexistent/{n}/file-{n}.txt").read_text()


def missing_key(n: int) -> None:
    {}[f"customer-{n}"]


def missing_index(n: int) -> None:
    [][n]


def no_attribute(n: int) -> None:
    getattr(object(), f"field_{n}")


def bad_int(n: int) -> None:
    int(f"x{n}")


def bad_json(n: int) -> None:
    json.loads("[" + "1," * (n % 50) + "}")


def divided(n: int) -> None:
    n / 0


def wrong_type(n: int) -> None:
    "a" + n  # type: ignore[operator]


def address_in_text(n: int) -> None:
    raise RuntimeError(f"<Order object at {hex(140_000_000_000_000 + n)}> is closed")


def uuid_in_text(n: int) -> None:
    raise LookupError(f"order {uuid.UUID(int=n)} not found in shard {n % 16}")


def url_in_text(n: int) -> None:
    raise ConnectionError(f"503 Server Error for url: https://api.example.org/orders/{n}?page={n}")


def time_in_text(n: int) -> None:
    raise TimeoutError(f"no answer since 2026-01-{n % 28 + 1:02}T12:00:{n % 60:02}.{n % 10**6:06}+00:00")


def list_in_text(n: int) -> None:
    raise ValueError(f"unknown ids: {list(range(n % 9 + 1))}")


def hash_in_text(n: int) -> None:
    raise ValueError(f"commit {uuid.UUID(int=n).hex} is not on main")


def token_in_text(n: int) -> None:
    raise PermissionError(f"token tk{n % 10}a{n % 10}bc{n} has expired")


def in_a_library(n: int) -> None:
    json.dumps({n, n + 1})


def grouped(n: int) -> None:
    raise ExceptionGroup(f"{n % 7} sub-exceptions", [KeyError(n), ValueError(n)])


def grouped_otherwise(n: int) -> None:
    raise ExceptionGroup(f"{n % 7} sub-exceptions", [ValueError(n)])


def from_another(n: int) -> None:
    try:
        missing_key(n)
    except KeyError as error:
        raise RuntimeError(f"customer {n} cannot be charged") from error


CORPUS = [
    open_missing, missing_key, missing_index, no_attribute, bad_int, bad_json, divided, wrong_type,
    address_in_text, uuid_in_text, url_in_text, time_in_text, list_in_text, hash_in_text, token_in_text,
    in_a_library, grouped, grouped_otherwise, from_another,
]  # fmt: skip


@pytest.mark.parametrize("raising", CORPUS, ids=lambda raising: raising.__name__)
@given(one=st.integers(0, 10**12), other=st.integers(0, 10**12))
def test_ids_paths_and_addresses_do_not_split_a_group(
    raising: Callable[[int], None], one: int, other: int
) -> None:
    assert fingerprint_of(raising, one) == fingerprint_of(raising, other)


def test_different_bugs_are_different_groups() -> None:
    assert len({fingerprint_of(raising, 7) for raising in CORPUS}) == len(CORPUS)


def test_the_same_message_elsewhere_is_another_group() -> None:
    def here() -> None:
        raise ValueError("x")

    def there() -> None:
        raise ValueError("x")

    assert fingerprint_of(here) != fingerprint_of(there)


def test_what_called_the_library_tells_failures_apart() -> None:
    """The innermost frames are the library's for both; the user's own decide."""

    def invoices() -> None:
        json.loads("{")

    def letters() -> None:
        json.loads("{")

    assert fingerprint_of(invoices) != fingerprint_of(letters)


def test_a_line_that_moved_is_the_same_failure(tmp_path: Path) -> None:
    """Neither line numbers nor the folder of a release count."""
    code = "def charge(n):\n    return [1 / 0 for _ in [n]]\n"
    frames = []
    for release, text in (("r1", code), ("r2", "\n\n# a comment\n" + code)):
        folder = tmp_path / release
        folder.mkdir()
        (folder / "shop.py").write_text(text)
        names: dict[str, Any] = {}
        exec(compile(text, str(folder / "shop.py"), "exec"), names)
        frames.append(fingerprint_of(names["charge"], 1))
    assert frames[0] == frames[1]


@pytest.mark.parametrize(
    ("message", "constant"),
    [
        ("plain words stay", "plain words stay"),
        ("can't open 'a b.txt' or \"c\"", "can't open <text>"),
        ("row 17 of 1,204.5 has -3e-05", "row <number> of <number> has <number>"),
        ("b'\\xff' is no UTF-8", "<text> is no UTF<number>"),
        ("ids: 1, 2 and 3", "ids: <number>"),
        ("/srv/app/x.py: no such file", "<path>: no such file"),
        ("C:\\temp\\x is locked", "<path> is locked"),
        ("at 0x7f3a5c", "at <number>"),
        ("customer 10000000 of 1234567a", "customer <number> of <number>"),
        ("it's what the user's code did", "it's what the user's code did"),
        ("", ""),
    ],
)
def test_the_constant_part(message: str, constant: str) -> None:
    assert f.constant_part(message) == constant


@given(st.text())
def test_any_text_has_a_constant_part(text: str) -> None:
    assert len(f.fingerprint("h", "error", "c", text, ("a:b", "\ud800"))) == f.FINGERPRINT_BYTES


@pytest.mark.parametrize(
    "tail", ["'" + "\\" * 50_000, "a/" * 50_000, "1a" * 50_000, "0" * 100_000, "'a" * 50_000]
)
def test_a_long_message_costs_no_more_than_its_length(tail: str) -> None:
    """No expression runs quadratically on text that handlers make; the timeout of the suite would tell."""
    f.constant_part(tail[:1024] * 20)


@pytest.mark.parametrize(
    "text", ["", "12", "g" * 16, "0" * 17, "0x" + "0" * 14, "０" * 16, " " * 16, "0 " * 8]
)
def test_a_wrong_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="16 hex digits"):
        f.parse(text)


def test_a_fingerprint_is_read() -> None:
    assert f.parse("00ff00FF0102AbCd") == bytes.fromhex("00ff00ff0102abcd")


def test_public_names() -> None:
    assert f.public_name("workerd.handler.Failure") == "workerd.Failure"
    assert f.public_name("shop." + "x" * 500) == ("shop." + "x" * 500)[:191]


DUMPS = """
import ctypes, faulthandler, sys, threading, time
faulthandler.enable()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def inner():
    ctypes.string_at(0)
def outer():
    inner()
outer()
"""


def test_frames_of_a_real_crash(tmp_path: Path) -> None:
    """Of the thread that crashed, without those of ctypes."""
    (tmp_path / "shop.py").write_text(textwrap.dedent(DUMPS))
    done = subprocess.run([sys.executable, tmp_path / "shop.py"], capture_output=True, text=True)
    assert done.returncode < 0
    assert f.frames_of_dump(done.stderr) == ("shop.py:inner", "shop.py:outer")


def test_a_dump_without_frames() -> None:
    assert f.frames_of_dump("no Python stack was written; /proc shows:\n  State: R (running)") == ()
    assert f.frames_of_dump(None) == ()
