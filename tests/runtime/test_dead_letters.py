"""The file of dead letters: what it says to have written is there."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workerd.job import Status, new_id
from workerd.outcome import Outcome
from workerd.runtime import dead_letters
from workerd.runtime.dead_letters import DeadLetter, DeadLetterFile


def letter() -> DeadLetter:
    outcome = Outcome(
        id=new_id(),
        attempt=1,
        claimed_at=1,
        handler="h",
        status=Status.FAILURE,
        error="x" * 600,
        node_id=b"n" * 16,
    )
    return DeadLetter(outcome, "a trigger refused it")


@contextmanager
def no_file_grows_over(size: int) -> Iterator[None]:
    """As on a full disk: of a longer write the beginning is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def letters(tmp_path: Path) -> DeadLetterFile:
    return DeadLetterFile(tmp_path / "dead-letters.jsonl")


@pytest.mark.parametrize("spare", [0, 100])
def test_a_letter_that_does_not_fit_on_the_disk_is_not_said_to_be_written(
    letters: DeadLetterFile, spare: int
) -> None:
    """And takes none with it that was written before, or is after."""
    first, refused, last = letter(), letter(), letter()
    assert letters.append([first])
    size = letters.path.stat().st_size
    with no_file_grows_over(size + spare):
        assert not letters.append([refused])
    assert letters.path.stat().st_size == size
    assert letters.append([last])
    assert list(letters.read()) == [first, last]


def test_a_line_that_was_cut_off_takes_only_itself(letters: DeadLetterFile) -> None:
    """As when the machine dies within a write; it is kept beside the file when the others are taken."""
    first, last = letter(), letter()
    assert letters.append([first])
    with letters.path.open("ab") as file:
        file.write(b'{"id": "')
    assert letters.append([last])
    assert letters.take() == [first, last]
    assert letters.path.with_suffix(".damaged").read_bytes() == b'{"id": "\n'


def test_a_full_file_takes_no_more(letters: DeadLetterFile, monkeypatch: pytest.MonkeyPatch) -> None:
    first = letter()
    assert letters.append([first])
    monkeypatch.setattr(dead_letters, "MAX_FILE_BYTES", letters.path.stat().st_size)
    assert not letters.append([letter()])
    assert list(letters.read()) == [first]
