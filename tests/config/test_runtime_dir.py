"""Where sockets are when node.runtime_dir is not set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.unprivileged import unprivileged
from workerd.config import reader, runtime_dir
from workerd.config.build import build
from workerd.config.reader import ConfigErrors
from workerd.config.runtime_dir import default_runtime_dir, wake_dir


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for /run/workerd, in a folder that can be written."""
    monkeypatch.setattr(runtime_dir, "SYSTEM_RUNTIME_DIR", tmp_path / "run" / "workerd")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "workerd"


@pytest.fixture
def forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that nobody can make, root included, stands for /run/workerd."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(runtime_dir, "SYSTEM_RUNTIME_DIR", tmp_path / "file" / "workerd")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def test_the_system_folder_comes_first(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can be made."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_runtime_dir(tmp_path / "state") == system


@pytest.mark.usefixtures("forbidden")
def test_the_folder_of_the_user_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a session has one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_runtime_dir(tmp_path / "state") == tmp_path / "workerd"


@pytest.mark.usefixtures("forbidden")
def test_the_state_folder_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container; a relative $XDG_RUNTIME_DIR does not count."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "here")
    assert default_runtime_dir(tmp_path / "state") == tmp_path / "state" / "run"


def test_a_command_finds_the_daemon_that_runs(system: Path, tmp_path: Path) -> None:
    """Root may write every folder, and the daemon of another user lives in one of them."""
    private = tmp_path / "state" / "run" / "private"
    private.mkdir(parents=True)
    (private / "supervisor").touch()
    assert default_runtime_dir(tmp_path / "state") == private.parent
    (system / "private").mkdir(parents=True)
    (system / "private" / "supervisor").touch()
    assert default_runtime_dir(tmp_path / "state") == system


def test_a_client_wakes_the_daemon_that_listens(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the folders that every user may enter."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert wake_dir() == system
    (tmp_path / "workerd").mkdir()
    (tmp_path / "workerd" / "wake").touch()
    assert wake_dir() == tmp_path / "workerd"


@pytest.fixture(params=["closed", "below closed", "too long", "loop"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An $XDG_RUNTIME_DIR that is closed to this user, as `su USER` keeps it, or cannot be looked at."""
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "loop").symlink_to("loop")
    found = {"below closed": "closed/run", "too long": "x" * 300}.get(request.param, request.param)
    return tmp_path / str(found)


@pytest.mark.usefixtures("forbidden")
def test_a_folder_of_the_user_that_cannot_be_entered_is_left_out(
    tmp_path: Path, unusable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a command nor a client's wake-up ends in an error for it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(unusable))
    state = tmp_path / "state"
    assert unprivileged(lambda: default_runtime_dir(state)) == str(state / "run")
    assert unprivileged(wake_dir) == str(runtime_dir.SYSTEM_RUNTIME_DIR)


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_the_configuration_has_the_folder(tmp_path: Path, given: str) -> None:
    """One that is written stays as it is."""
    path = tmp_path / "workerd.toml"
    path.write_text(
        f'[node]\nstate_dir = "{tmp_path}/state"\n' + (f'runtime_dir = "{given}"\n' if given else "")
    )
    errors = ConfigErrors()
    config = build(reader.read(path, {}, errors), errors)
    assert config.node.runtime_dir == (Path(given) if given else tmp_path / "state" / "run")
