"""The image, and the example of a user's own on top of it: without rights, stopped, killed, out of memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import ROOT
from tests.support.eventually import eventually

# The images are built before the first of them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LIMITS = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1000:1000")
"""Lower than this process's own, which it may not raise."""
NO_RIGHTS = ("--read-only", "--tmpfs", "/tmp", "--cap-drop=all", "--security-opt=no-new-privileges")
EATS = '\n[handlers.eat]\ncall = "eats:eat"\npool = "app"\nmax_attempts = 1\nmax_crashes = 1\n'


class Podman:
    """podman with a storage of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder  # where podman is run too: it leaves a file "oom" there
        self._base = [
            "podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--cgroup-manager=cgroupfs",
        ]  # fmt: skip

    def __call__(self, *words: str, check: bool = True, within: float = 300.0) -> str:
        """What a command prints."""
        done = self.done(*words, within=within)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()

    def done(self, *words: str, within: float = 300.0) -> subprocess.CompletedProcess[str]:
        """A command that has ended, whatever its status."""
        return subprocess.run(
            [*self._base, *words],
            capture_output=True, text=True, timeout=within, check=False, cwd=self._folder,
        )  # fmt: skip


class Container:
    """A container of the example image on a volume for its state; `workerd` runs a command in it."""

    def __init__(self, podman: Podman, name: str, *options: str) -> None:
        self._podman = podman
        self.name = name
        podman("run", "--detach", "--name", name, "--network=none", *LIMITS, *NO_RIGHTS, *options)
        eventually(lambda: self.done("status").returncode == 0, every=0.2, state=self.log)

    def done(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._podman.done("exec", self.name, "workerd", *words)

    def workerd(self, *words: str) -> str:
        return self._podman("exec", self.name, "workerd", *words)

    def log(self) -> str:
        return self._podman("logs", self.name, check=False)


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """podman with the images `base`, `workerd` and `example`; skipped where containers cannot run."""
    for program in ("podman", "mmdebstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if os.getuid() != 0:
        pytest.skip("only root may make a base image")
    folder = Path(tempfile.mkdtemp(prefix="podman."))  # podman takes no longer path than 50 characters
    podman = Podman(folder)
    try:
        make_base(podman, folder)
        make_images(podman, folder)
        yield podman
    finally:
        podman("rm", "--all", "--force", "--time", "0", check=False)
        podman("system", "reset", "--force", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def make_base(podman: Podman, folder: Path) -> None:
    """A Debian with Python, without a registry."""
    packages = "python3,python3-venv,python3-pip"
    made = subprocess.run(
        ["mmdebstrap", "--variant=apt", f"--include={packages}", "bookworm", f"{folder}/base"],
        capture_output=True, text=True, timeout=600, check=False, cwd="/",
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"mmdebstrap made no base: {made.stderr[-300:]}")
    packed = subprocess.run(["tar", "-C", f"{folder}/base", "-c", "."], capture_output=True, check=True)
    shutil.rmtree(folder / "base")
    (folder / "base.tar").write_bytes(packed.stdout)
    podman("import", f"{folder}/base.tar", "base")
    (folder / "base.tar").unlink()
    tried = podman.done("run", "--rm", "--network=none", *LIMITS, "base", "true")
    if tried.returncode:
        pytest.skip(f"containers cannot run here: {tried.stderr[-300:]}")


def make_images(podman: Podman, folder: Path) -> None:
    """The shipped Containerfiles, with packages from a folder in place of an index."""
    wheels = folder / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", wheels, ROOT, "hatchling"],
        capture_output=True, timeout=600, check=True,
    )  # fmt: skip
    podman(
        "build", "--format=docker", "--network=none", *LIMITS, "--volume", f"{wheels}:/wheels-here:ro",
        "--build-arg=BASE=localhost/base", "--build-arg=PIP_NO_INDEX=1",
        "--build-arg=PIP_FIND_LINKS=/wheels-here",
        "--tag=workerd", f"--file={ROOT}/packaging/container/Containerfile", str(ROOT),
    )  # fmt: skip
    podman(
        "build", "--format=docker", "--network=none", *LIMITS, "--build-arg=WORKERD=localhost/workerd",
        "--tag=example", f"{ROOT}/packaging/container/example",
    )  # fmt: skip


@pytest.fixture
def container(
    podman: Podman, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Container]]:
    """Start containers on one volume; `options` of podman."""
    volume = f"state-{request.node.name}"[:60]
    podman("volume", "create", volume)
    names: list[str] = []

    def start(*options: str) -> Container:
        names.append(f"{volume}-{len(names)}")
        mount = ("--volume", f"{volume}:/var/lib/workerd")
        return Container(podman, names[-1], *mount, *options, "localhost/example")

    yield start
    podman("rm", "--force", "--time", "0", *names, check=False)
    podman("volume", "rm", "--force", volume)
    assert podman("ps", "--all", "--quiet") == ""


def test_the_example_runs_without_rights(podman: Podman, container: Callable[..., Container]) -> None:
    """Not root, nothing writable but its volume, limits on memory and processes, a health check."""
    made = container("--memory=256m", "--pids-limit=100")
    assert made.workerd("enqueue", "greet", "name=Ada", "--wait", "20s") == '"Hello, Ada!"'
    assert podman("exec", made.name, "id", "-u") == "64020"
    podman("healthcheck", "run", made.name)


def test_stop_lets_a_running_job_finish(podman: Podman, container: Callable[..., Container]) -> None:
    """`podman stop` drains: exit status 0, and the job has its result after the next start."""
    made = container()
    job = made.workerd("enqueue", "count", "seconds=2")
    eventually(lambda: "inprogress" in made.workerd("job", "list"), every=0.1)
    podman("stop", "--time", "40", made.name)
    assert podman("inspect", "--format", "{{.State.ExitCode}}", made.name) == "0"
    podman("start", made.name)
    eventually(lambda: made.done("status").returncode == 0, every=0.2, state=made.log)
    assert "attempt 1" in made.workerd("why", job)


def test_a_new_container_takes_over_the_volume_of_a_killed_one(
    podman: Podman, container: Callable[..., Container]
) -> None:
    """An upgrade in the middle of a job: it runs again, as the second attempt."""
    killed = container()
    job = killed.workerd("enqueue", "count", "seconds=2")
    eventually(lambda: "inprogress" in killed.workerd("job", "list"), every=0.1)
    podman("kill", killed.name)
    upgraded = container()
    eventually(lambda: "completed: attempt 2" in upgraded.workerd("why", job), every=0.2)


def test_a_job_that_eats_the_containers_memory_is_out_of_memory(
    container: Callable[..., Container], tmp_path: Path
) -> None:
    """The reason and the limit of the container are told."""
    example = ROOT / "packaging" / "container" / "example"
    (tmp_path / "workerd.toml").write_text((example / "workerd.toml").read_text() + EATS)
    (tmp_path / "eats.py").write_text("def eat() -> int:\n    return len(bytearray(b'x') * (1 << 30))\n")
    made = container(
        "--memory=256m", "--memory-swap=256m",
        "--volume", f"{tmp_path}/workerd.toml:/etc/workerd/workerd.toml:ro",
        "--volume", f"{tmp_path}/eats.py:/app/eats.py:ro",
    )  # fmt: skip
    job = made.workerd("enqueue", "eat")
    eventually(lambda: "262144 KiB" in made.workerd("why", job), every=0.2, state=lambda: made.log())
    assert "oom" in made.workerd("job", "list")
