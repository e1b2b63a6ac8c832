"""`workerd install` and `uninstall`: unit, system user and configuration.

A manifest of the installed files with their hashes shows later which of them were edited: those are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

import workerd
from workerd.errors import WorkerdError

MANIFEST = PurePosixPath("usr/lib/workerd/installed")
CONFIGURATION = PurePosixPath("etc/workerd")
PROGRAM = "/usr/bin/workerd"
"""The path in the shipped unit, replaced by that of the actual installation."""

LAYOUT = {
    "etc/workerd.toml": "etc/workerd/workerd.toml",
    "systemd/workerd.service": "usr/lib/systemd/system/workerd.service",
    "systemd/workerd@.service": "usr/lib/systemd/system/workerd@.service",
    "systemd/workerd.sysusers": "usr/lib/sysusers.d/workerd.conf",
    "systemd/workerd.tmpfiles": "usr/lib/tmpfiles.d/workerd.conf",
    "systemd/workerd.service.d": "usr/share/doc/workerd/workerd.service.d",
}


class InstallError(WorkerdError):
    """The files could not be written; run it as a user who may write there."""


@dataclass(frozen=True)
class Step:
    """What happened to one file: `installed`, `unchanged`, `kept` (it was edited), `removed`."""

    path: Path
    what: str


def install(prefix: Path, program: str | None = None) -> list[Step]:
    """Install everything below `prefix`; `program` is what the unit runs, by default this installation.

    Edited configuration is kept, and the new file is written beside it as `.new`.
    Raises InstallError.
    """
    before = _manifest(prefix)
    steps: list[Step] = []
    now: dict[str, str] = {}
    try:
        for name, content in _files(program or own_program()):
            steps.append(_install_file(prefix, name, content, before, now))
        # Files that are there as they should be, without a list of them, came with a package.
        if before or any(step.what != "unchanged" for step in steps):
            listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(now.items()))
            _write(prefix / MANIFEST, listed.encode())
    except OSError as error:
        raise InstallError(
            f"{error.filename} cannot be written ({error.strerror}): run this as root, "
            "or name a folder of your own with --prefix."
        ) from error
    return steps


def _install_file(
    prefix: Path, name: str, content: bytes, before: dict[str, str], now: dict[str, str]
) -> Step:
    path = prefix / name
    now[name] = _digest(content)
    present = path.read_bytes() if path.exists() else None
    if present == content:
        return Step(path, "unchanged")
    changed = present is not None and _digest(present) != before.get(name)
    if changed and PurePosixPath(name).is_relative_to(CONFIGURATION):
        # The hash of the original stays in the manifest, so that the file still counts as edited later.
        now[name] = before.get(name, "-")
        now[f"{name}.new"] = _digest(content)
        _write(path.with_name(f"{path.name}.new"), content)
        return Step(path, "kept")
    _write(path, content)
    return Step(path, "installed")


def uninstall(prefix: Path) -> list[Step]:
    """Remove what `install` wrote below `prefix`, except edited configuration and the daemon's data.

    Raises InstallError.
    """
    manifest = _manifest(prefix)
    if not manifest:
        raise InstallError(f"Nothing is installed below {prefix}: {prefix / MANIFEST} not found.")
    steps: list[Step] = []
    try:
        for name, digest in manifest.items():
            path = prefix / name
            if not path.is_file():
                continue
            changed = _digest(path.read_bytes()) != digest
            if changed and PurePosixPath(name).is_relative_to(CONFIGURATION):
                steps.append(Step(path, "kept"))
            else:
                path.unlink()
                steps.append(Step(path, "removed"))
                _remove_empty(prefix, path.parent)
        (prefix / MANIFEST).unlink()
        _remove_empty(prefix, (prefix / MANIFEST).parent)
    except OSError as error:
        raise InstallError(
            f"{error.filename} cannot be removed ({error.strerror}): run this as root."
        ) from error
    return steps


def own_program() -> str:
    """The command that starts this installation."""
    script = Path(sys.executable).with_name("workerd")
    if script.exists():
        return str(script)
    return f"{sys.executable} -m workerd"


def unreachable(program: str) -> str:
    """A warning if the hardened unit could not run that program, else ""."""
    path = Path(program.split()[0])
    if path.is_relative_to("/home") or path.is_relative_to("/root"):
        return (
            f"{path} is in a home folder, which the service cannot access (ProtectHome=): install workerd "
            "elsewhere, such as in /opt/workerd, or see paths.conf.example."
        )
    return ""


def shipped() -> Traversable:
    """The folder that holds `etc` and `systemd`: in the wheel, or in the source tree."""
    data = resources.files(workerd).joinpath("_data")
    if data.is_dir():
        return data
    return Path(workerd.__file__).parents[1]


def _files(program: str) -> Iterator[tuple[str, bytes]]:
    """Every file to install: its path below the prefix, and its content."""
    for source, target in LAYOUT.items():
        found = shipped().joinpath(source)
        if found.is_dir():
            for item in sorted(found.iterdir(), key=lambda each: each.name):
                yield f"{target}/{item.name}", item.read_bytes()
        else:
            yield target, found.read_bytes().replace(PROGRAM.encode(), program.encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _manifest(prefix: Path) -> dict[str, str]:
    """The files of an earlier install: path below the prefix -> hash of its content."""
    try:
        lines = (prefix / MANIFEST).read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        # The manifest is only a file: it must not make `uninstall` reach beyond the prefix.
        if name and ".." not in PurePosixPath(name).parts and not name.startswith("/"):
            found[name] = digest
    return found


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    # A folder below a prefix may be another user's, who must not lead this to a file elsewhere.
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, mode)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _remove_empty(prefix: Path, folder: Path) -> None:
    """Remove folders that only held our files."""
    with contextlib.suppress(OSError):
        while folder != prefix and folder.name in ("workerd", "workerd.service.d"):
            folder.rmdir()
            folder = folder.parent
