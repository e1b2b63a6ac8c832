"""`install --handover`: a new generation of the daemon takes over from the one that systemd runs here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from workerd.cli.errors import CommandFailed, UsageError
from workerd.cli.output import Document, notify
from workerd.cli.session import load_config
from workerd.config.model import Config
from workerd.runtime.generations import ask_status
from workerd.text import line

FIRST_UNIT = "workerd.service"
CONFIGURATION = Path("/etc/workerd")
"""What the units name."""
DROP_INS = Path("/etc/systemd/system")
MANAGER = Path("/run/systemd/system")
"""The folder is there where systemd is the service manager."""
START_TIMEOUT_S = 900.0
"""The unit has a limit of its own, which the daemon extends while it loads."""
TIMED_OUT = 124
"""Exit status of timeout(1)."""
NOTICE_TIMEOUT_S = 10.0
"""How long the former daemon may take to notice that it was superseded."""

_UNIT = re.compile(r"workerd(?:@([1-9][0-9]{0,2}))?\.service")


def unit_of(generation: int) -> str:
    """The unit of a generation of the daemon."""
    return FIRST_UNIT if generation == 1 else f"workerd@{generation}.service"


class HandOver:
    """From the daemon that runs, to a unit that does not.

    Raises UsageError where there is nothing that could be taken over from; then nothing was changed.
    """

    def __init__(self, prefix: Path) -> None:
        if prefix != Path("/"):
            raise UsageError("--handover starts a unit of this host, so it cannot be used with --prefix.")
        if not MANAGER.is_dir() or shutil.which("systemctl") is None:
            raise UsageError(
                "--handover needs systemd to run the daemon. Elsewhere start a second node with a name and "
                "folders of its own, then stop the first: `workerd stop` waits for running jobs."
            )
        if os.geteuid() != 0:
            raise UsageError("--handover starts a unit: run this as root.")
        self._running = _units()
        self._config = load_config(CONFIGURATION)
        former = self._status()
        if not self._running or not former:
            raise UsageError(
                "There is no daemon to take over from: no unit of workerd runs here. "
                "`systemctl enable --now workerd` starts it."
            )
        if "generation" not in former:
            raise UsageError(
                f"The running daemon (version {line(former.get('version'))}) does not support a handover: "
                "`systemctl restart workerd` starts this version after its running jobs have ended."
            )
        self._former: int = former["generation"]
        # Not the first unit, by which people stop and start the service: it is used after a reboot.
        self._generation = next(n for n in range(2, 1000) if n not in self._running)

    def _status(self) -> Document:
        return _status(self._config)

    def run(self) -> None:
        """Start the new generation, which takes over when it is ready. Raises CommandFailed if it is not."""
        unit = unit_of(self._generation)
        _share_drop_ins()
        _systemctl("daemon-reload")
        _systemctl("reset-failed", unit)
        started = _systemctl("start", unit)
        if started.returncode:
            _systemctl("stop", unit)  # systemd would try it again and again
            raise CommandFailed(
                f"{unit} did not become ready; {unit_of(self._former)} serves as before. "
                f"`journalctl -u {unit}` shows the reason."
            )
        status = self._wait_noticed()
        running = sum(
            bool(worker.get("job"))
            for name, pool in status.get("pools", {}).items()
            if "@" in name
            for worker in pool.get("workers") or ()
        )
        notify(
            f"{unit} serves now. {unit_of(self._former)} takes no more jobs and ends after its running "
            f"jobs ({running}); `workerd status` shows both."
        )
        quarantined = [name for name, pool in status.get("pools", {}).items() if pool.get("quarantined")]
        if quarantined:
            notify(f"Pools that did not come up: {', '.join(map(line, quarantined))}. Their jobs wait.")

    def _wait_noticed(self) -> Document:
        end = time.monotonic() + NOTICE_TIMEOUT_S
        while True:
            status = self._status()
            former = {one["generation"]: one["state"] for one in status.get("former", ())}
            if former.get(self._former) in (None, "draining") or time.monotonic() > end:
                return status
            time.sleep(0.05)


def _status(config: Config) -> Document:
    with contextlib.suppress(OSError):
        return ask_status(config.node)
    return {}


def _units() -> set[int]:
    """The generations whose units run, or are about to."""
    listed = _systemctl("list-units", "--all", "--plain", "--no-legend", FIRST_UNIT, "workerd@*.service")
    found = set()
    for words in map(str.split, listed.stdout.splitlines()):
        match = _UNIT.fullmatch(words[0]) if len(words) > 2 else None
        if match is not None and words[2] not in ("inactive", "failed"):
            found.add(int(match[1] or 1))
    return found


def _share_drop_ins() -> None:
    """What an administrator has changed of the first unit holds for all."""
    first, later = DROP_INS / f"{FIRST_UNIT}.d", DROP_INS / "workerd@.service.d"
    forget_drop_ins()
    # Links of files: systemd does not follow the link of a folder.
    for path in sorted(first.glob("*.conf")):
        later.mkdir(exist_ok=True)
        if not (later / path.name).exists():
            (later / path.name).symlink_to(f"../{first.name}/{path.name}")


def forget_drop_ins() -> None:
    """Remove the links to those of the first unit."""
    later = DROP_INS / "workerd@.service.d"
    for link in later.glob("*.conf"):
        if link.is_symlink() and os.readlink(link).startswith(f"../{FIRST_UNIT}.d/"):
            link.unlink()
    with contextlib.suppress(OSError):
        later.rmdir()


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One that takes too long counts as failed, so that a unit which it starts is stopped."""
    command = ["systemctl", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, TIMED_OUT, "", "")
