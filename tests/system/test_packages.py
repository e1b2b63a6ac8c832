"""Wheel and sdist hold the program and nothing else, and `workerd install` works from the wheel."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist built from this source."""
    work = tmp_path_factory.mktemp("build")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--target", work / "tools", "hatchling"], check=True)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", work / "dist"],
        cwd=PROJECT,
        env={"PYTHONPATH": str(work / "tools"), "PATH": "/usr/bin:/bin"},
        check=True,
    )
    return work / "dist"


def test_the_wheel_holds_only_the_program_and_its_files(built: Path) -> None:
    """It includes unit and configuration, and no tests or benchmarks."""
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"workerd"}
    assert not [name for name in names if "test_" in name or "bench" in name]
    for source in ("etc/workerd.toml", "systemd/workerd.service", "systemd/workerd.sysusers"):
        assert f"workerd/_data/{source}" in names


def test_the_sdist_holds_the_sources_of_the_wheel(built: Path) -> None:
    """It includes every source of the wheel, and no tests or benchmarks."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "pyproject.toml",
        "workerd/__init__.py",
        "etc/workerd.toml",
        "systemd/workerd.service",
        "LICENSE",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_install_works_from_the_wheel(built: Path, tmp_path: Path) -> None:
    """`workerd install` finds its files without the source tree."""
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from workerd import install as i\n"
        "assert i.__file__.startswith(sys.argv[1])\n"
        "print(len(i.install(Path(sys.argv[2]), '/opt/workerd/bin/workerd')))\n"
    )
    root = tmp_path / "root"
    subprocess.run([sys.executable, "-c", script, target, root], check=True, cwd=tmp_path)
    assert (root / "etc/workerd/workerd.toml").read_text() == (PROJECT / "etc/workerd.toml").read_text()
    assert "/opt/workerd/bin/workerd" in (root / "usr/lib/systemd/system/workerd.service").read_text()
