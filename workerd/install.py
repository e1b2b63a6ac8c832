"""`workerd install`: unit, system user and configuration, laid into a file system; and taken away again.

A list of what was laid, with its hashes, tells later what a person has changed since: that is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

import workerd
from workerd.errors import WorkerdError

RECORD = PurePosixPath("usr/lib/workerd/installed")
CONFIGURATION = PurePosixPath("etc/workerd")
PROGRAM = "/usr/bin/workerd"
"""What the shipped unit calls; an installation elsewhere puts its own path there."""

LAYOUT = {
    "etc/workerd.toml": "etc/workerd/workerd.toml",
    "systemd/workerd.service": "usr/lib/systemd/system/workerd.service",
    "systemd/workerd.sysusers": "usr/lib/sysusers.d/workerd.conf",
    "systemd/workerd.tmpfiles": "usr/lib/tmpfiles.d/workerd.conf",
    "systemd/workerd.service.d": "usr/share/doc/workerd/workerd.service.d",
}


class InstallError(WorkerdError):
    """The files could not be laid; run it as a user who may write there."""


@dataclass(frozen=True)
class Step:
    """What happened to one file: `laid`, `same`, `kept` (a person changed it), `removed`."""

    path: Path
    what: str


def install(prefix: Path, program: str | None = None) -> list[Step]:
    """Lay everything below `prefix`; `program` is what the unit calls, by default this installation.

    Configuration that a person has changed is kept, and the new one is laid beside it as `.new`.
    Raises InstallError.
    """
    before = _recorded(prefix)
    steps: list[Step] = []
    now: dict[str, str] = {}
    try:
        for name, content in _files(program or own_program()):
            steps.append(_lay(prefix, name, content, before, now))
        _write(
            prefix / RECORD, "".join(f"{digest}  {name}\n" for name, digest in sorted(now.items())).encode()
        )
    except OSError as error:
        raise InstallError(
            f"{error.filename} cannot be written ({error.strerror}): run this as root, "
            "or name a folder of your own with --prefix."
        ) from error
    return steps


def _lay(prefix: Path, name: str, content: bytes, before: dict[str, str], now: dict[str, str]) -> Step:
    path = prefix / name
    now[name] = _digest(content)
    there = path.read_bytes() if path.exists() else None
    if there == content:
        return Step(path, "same")
    changed = there is not None and _digest(there) != before.get(name)
    if changed and PurePosixPath(name).is_relative_to(CONFIGURATION):
        # What it was when it was laid stays on record: it is still a person's, whatever comes later.
        now[name] = before.get(name, "-")
        now[f"{name}.new"] = _digest(content)
        _write(path.with_name(f"{path.name}.new"), content)
        return Step(path, "kept")
    _write(path, content)
    return Step(path, "laid")


def uninstall(prefix: Path) -> list[Step]:
    """Take away what `install` laid below `prefix`; configuration that was changed since stays.

    What the daemon has stored stays too. Raises InstallError.
    """
    recorded = _recorded(prefix)
    if not recorded:
        raise InstallError(f"Nothing is installed below {prefix}: {prefix / RECORD} is not there.")
    steps: list[Step] = []
    try:
        for name, digest in recorded.items():
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
        (prefix / RECORD).unlink()
        _remove_empty(prefix, (prefix / RECORD).parent)
    except OSError as error:
        raise InstallError(
            f"{error.filename} cannot be removed ({error.strerror}): run this as root."
        ) from error
    return steps


def own_program() -> str:
    """The command line that starts this very installation."""
    script = Path(sys.executable).with_name("workerd")
    if script.exists():
        return str(script)
    return f"{sys.executable} -m workerd"


def unreachable(program: str) -> str:
    """A sentence if the hardened unit could not reach that program, else nothing."""
    path = Path(program.split()[0])
    if path.is_relative_to("/home") or path.is_relative_to("/root"):
        return (
            f"{path} lies in a home folder, which the service may not see (ProtectHome=): install workerd "
            "elsewhere, such as in /opt/workerd, or see paths.conf.example."
        )
    return ""


# -- the files that came with the program ------------------------------------------------------


def shipped() -> Traversable:
    """The folder that holds `etc` and `systemd`: in an installed program, or in its source tree."""
    data = resources.files(workerd).joinpath("_data")
    if data.is_dir():
        return data
    return Path(workerd.__file__).parents[1]


def _files(program: str) -> Iterator[tuple[str, bytes]]:
    """Every file to lay: its path below the prefix, and its content."""
    for source, target in LAYOUT.items():
        found = shipped().joinpath(source)
        if found.is_dir():
            for item in sorted(found.iterdir(), key=lambda each: each.name):
                yield f"{target}/{item.name}", item.read_bytes()
        else:
            yield target, found.read_bytes().replace(PROGRAM.encode(), program.encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _recorded(prefix: Path) -> dict[str, str]:
    """What an earlier install laid: path below the prefix -> hash of its content."""
    try:
        lines = (prefix / RECORD).read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        # The record is only a file: it must not make `uninstall` reach beyond the prefix.
        if name and ".." not in PurePosixPath(name).parts and not name.startswith("/"):
            found[name] = digest
    return found


def _write(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(content)
        fresh.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _remove_empty(prefix: Path, folder: Path) -> None:
    """Remove folders that only held our files; the system's own are never empty."""
    with contextlib.suppress(OSError):
        while folder != prefix and folder.name in ("workerd", "workerd.service.d"):
            folder.rmdir()
            folder = folder.parent
