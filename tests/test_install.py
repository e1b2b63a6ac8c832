"""Installing into a file system, again, after changes, and taking it away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workerd import install as installation
from workerd.config.build import load
from workerd.install import InstallError, install, uninstall

CONFIG = "etc/workerd/workerd.toml"
UNIT = "usr/lib/systemd/system/workerd.service"


def files(prefix: Path) -> set[str]:
    return {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}


def what(steps: list[installation.Step], prefix: Path) -> dict[str, str]:
    return {str(step.path.relative_to(prefix)): step.what for step in steps}


def test_everything_is_installed_and_removed(tmp_path: Path) -> None:
    """Unit, user, folders, configuration and examples are there; afterwards nothing is."""
    assert set(what(install(tmp_path), tmp_path).values()) == {"installed"}
    assert {CONFIG, UNIT, "usr/lib/sysusers.d/workerd.conf", "usr/lib/tmpfiles.d/workerd.conf"} < files(
        tmp_path
    )
    assert load(tmp_path / "etc/workerd", {}).pools == {}
    assert set(what(install(tmp_path), tmp_path).values()) == {"unchanged"}
    assert set(what(uninstall(tmp_path), tmp_path).values()) == {"removed"}
    assert files(tmp_path) == set()
    assert not (tmp_path / "etc/workerd").exists()


def test_the_unit_starts_this_installation(tmp_path: Path) -> None:
    """Each command of the unit is called where this program is."""
    install(tmp_path, "/opt/workerd/bin/workerd")
    unit = (tmp_path / UNIT).read_text()
    assert "ExecStart=/opt/workerd/bin/workerd run -c /etc/workerd\n" in unit
    assert "ExecReload=/opt/workerd/bin/workerd reload -c /etc/workerd\n" in unit
    assert "/usr/bin/workerd" not in unit
    assert "ProtectHome" in installation.unreachable("/home/me/venv/bin/workerd")
    assert not installation.unreachable("/opt/workerd/bin/workerd")


def test_the_unit_of_later_generations_differs_in_nothing_else() -> None:
    """From the first one's: a daemon that took over runs under the same settings."""
    folder = Path(installation.__file__).parents[1] / "systemd"
    first, later = (
        [line for line in (folder / name).read_text().splitlines() if line and not line.startswith("#")]
        for name in ("workerd.service", "workerd@.service")
    )
    assert set(later) - set(first) == {
        "Description=workerd, background jobs, generation %i",
        "Environment=WORKERD_NODE__GENERATION=%i",
    }
    assert set(first) - set(later) == {
        "Description=workerd, background jobs",
        "[Install]",
        "WantedBy=multi-user.target",
    }


def test_files_of_a_package_are_left_to_it(tmp_path: Path) -> None:
    """Where all is there as it should be, without a list of it, no list is written."""
    install(tmp_path)
    (tmp_path / installation.MANIFEST).unlink()
    assert set(what(install(tmp_path), tmp_path).values()) == {"unchanged"}
    assert not (tmp_path / installation.MANIFEST).exists()


def test_changed_configuration_is_never_overwritten(tmp_path: Path) -> None:
    """Edited configuration survives install and uninstall; the new file is written beside it."""
    install(tmp_path)
    (tmp_path / CONFIG).write_text('[node]\nname = "mine"\n')
    for _ in range(2):
        assert what(install(tmp_path), tmp_path)[CONFIG] == "kept"
    assert (tmp_path / CONFIG).read_text() == '[node]\nname = "mine"\n'
    assert (tmp_path / f"{CONFIG}.new").exists()
    assert what(uninstall(tmp_path), tmp_path)[CONFIG] == "kept"
    assert files(tmp_path) == {CONFIG}


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    """A configuration that `install` did not write is kept as well."""
    (tmp_path / "etc/workerd").mkdir(parents=True)
    (tmp_path / CONFIG).write_text("# mine\n")
    assert what(install(tmp_path), tmp_path)[CONFIG] == "kept"
    assert what(uninstall(tmp_path), tmp_path)[CONFIG] == "kept"
    assert (tmp_path / CONFIG).read_text() == "# mine\n"


def test_an_upgrade_replaces_unchanged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version's files take the place of the old one's."""
    install(tmp_path)
    new = tmp_path / "new"
    for source in ("etc", "systemd"):
        (new / source).mkdir(parents=True)
    for source in installation.LAYOUT:
        if source.endswith(".d"):
            (new / source).mkdir()
        else:
            (new / source).write_text("# new\n")
    monkeypatch.setattr(installation, "shipped", lambda: new)
    steps = what(install(tmp_path), tmp_path)
    assert (steps[CONFIG], steps[UNIT]) == ("installed", "installed")
    assert (tmp_path / CONFIG).read_text() == "# new\n"


def test_a_manifest_cannot_reach_beyond_the_prefix(tmp_path: Path) -> None:
    """Whatever stands in the record, only files below the prefix are removed."""
    prefix = tmp_path / "root"
    victim = tmp_path / "victim"
    victim.write_text("x")
    install(prefix)
    with (prefix / installation.MANIFEST).open("a") as manifest:
        manifest.write(f"-  ../victim\n-  {victim}\n")
    uninstall(prefix)
    assert victim.exists()


def test_a_failed_installation_names_the_cause(tmp_path: Path) -> None:
    """Uninstalling without an installation, or without write access, fails with a message."""
    with pytest.raises(InstallError, match="Nothing is installed below"):
        uninstall(tmp_path)
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(InstallError, match=r"cannot be written .*--prefix"):
        install(tmp_path)


def test_a_planted_link_leads_nowhere(tmp_path: Path) -> None:
    """Below a folder that another user may write, nothing is written or changed through links."""
    victim = tmp_path / "victim"
    victim.write_text("root's own")
    victim.chmod(0o600)
    prefix = tmp_path / "root"
    (prefix / CONFIG).parent.mkdir(parents=True)
    planted = (prefix / CONFIG).with_name(f".workerd.toml.{os.getpid()}")
    planted.symlink_to(victim)
    install(prefix)
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("root's own", 0o600)
    assert ((prefix / CONFIG).stat().st_mode & 0o777, (prefix / CONFIG).is_symlink()) == (0o644, False)
    assert [path for path in prefix.rglob(".*") if path.is_file()] == [planted]
