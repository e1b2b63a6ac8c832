"""Outcomes that a former generation of the daemon had spooled are replayed by the next."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from tests.support.outcomes import outcome
from workerd.config.model import NodeConfig
from workerd.ingester.inheritance import inherit
from workerd.ingester.locked import LockedOutcomes
from workerd.ingester.spool import DAMAGED_PREFIX, Spool
from workerd.outcome import Outcome
from workerd.runtime.generations import Generations
from workerd.runtime.paths import Paths

LIMIT = 1 << 20


def spooled(folder: Path, *outcomes: Outcome) -> None:
    """Leave outcomes in the spool of a process that is killed then."""
    pid = os.fork()
    if pid == 0:
        spool = Spool(folder, LIMIT)
        spool.open()
        os._exit(0 if spool.append(outcomes) == len(outcomes) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def locked(folder: Path, one: Outcome) -> None:
    """Leave the outcome of a locked row."""
    file = LockedOutcomes(folder / "locked.db")
    file.open()
    file.add([one])
    file.close()


def test_what_a_dead_generation_kept_for_inspection_stays(tmp_path: Path) -> None:
    """A damaged file, of which all that can be read was replayed."""
    node = NodeConfig(runtime_dir=tmp_path / "run", state_dir=tmp_path)
    own, dead = (Paths(msgspec.structs.replace(node, generation=n)) for n in (1, 2))
    spooled(dead.spool, outcome())
    (file,) = dead.spool.glob("*.db")
    kept = file.rename(file.with_name(f"{DAMAGED_PREFIX}{file.name}"))
    dead.lock.touch()
    own.spool.mkdir(parents=True)
    inherit(Generations(node), own.spool)
    assert kept.exists()
    assert not list(own.spool.iterdir())


def test_the_spool_of_a_dead_generation_is_replayed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    """Behind our own; nothing is left there."""
    node = NodeConfig(runtime_dir=tmp_path / "run", state_dir=tmp_path)
    own, dead, living = (Paths(msgspec.structs.replace(node, generation=n)) for n in (1, 2, 3))
    outcomes = [outcome() for _ in range(6)]
    for paths, first in ((own, 0), (dead, 2), (living, 4)):
        spooled(paths.spool, outcomes[first])
        locked(paths.spool, outcomes[first + 1])
        paths.lock.touch()
    with living.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inherit(Generations(node), own.spool)
    spool, rows = Spool(own.spool, LIMIT), LockedOutcomes(own.spool / "locked.db")
    spool.open()
    rows.open()
    found = spool.peek(10, 1 << 30)
    spool.advance(len(found))
    found += spool.peek(10, 1 << 30)
    assert [one.id for one in found] == [outcomes[0].id, outcomes[2].id]
    assert rows.jobs == {outcomes[1].id, outcomes[3].id}
    assert not list(dead.spool.iterdir())
    assert list(living.spool.iterdir())
    spool.close()
    rows.close()
