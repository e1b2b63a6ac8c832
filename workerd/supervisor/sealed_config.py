"""The configuration without store credentials; those are sealed for the store's roles."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from workerd.config.build import build
from workerd.config.model import Config, StoreConfig
from workerd.config.reader import ConfigErrors, ConfigTree, read
from workerd.errors import ConfigError
from workerd.runtime.child import fork, ignore_terminal_signals
from workerd.runtime.hidden_environment import hidden_environment, hide_environment

# The configuration as the supervisor may have it: without the store's section, which is sealed apart.
#
# What a process once held stays in its memory and in that of all that it forks, so that the files and
# variables are read in a child; only the store roles read what it sealed.
#

LIMIT = 30.0
"""Seconds that reading may take; files on a dead server may never answer."""

_decode_store = msgspec.json.Decoder(StoreConfig).decode  # made once, for every role that is forked


@dataclass(frozen=True)
class Reading:
    """One state of the configuration.

    `config` has no store section; `sealed` is a descriptor that holds it; `mark` is another when it is.
    `scheme`: what the store's URL begins with.
    """

    config: Config
    sealed: int
    mark: int
    scheme: str = ""


Read = Callable[[], Reading]


class _Told(msgspec.Struct, array_like=True):
    """What the child found: all values but those of the store, or every fault."""

    sources: list[str]
    values: dict[str, Any]
    notes: tuple[str, ...]
    mark: int
    scheme: str
    faults: list[str]


class Reader:
    """Reads what configures this node, at start and at reload.

    It takes the variables out of this process's environment, and keeps them where only its child looks.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path.absolute() if path is not None else None
        self._variables = hide_environment("WORKERD_")

    def read(self) -> Reading:
        """The configuration as it is now. Raises ConfigError with all faults."""
        sealed, answer = _memory("workerd-store"), _memory("workerd-configuration")
        try:
            told = self._ask(sealed, answer)
            if told.faults:
                raise ConfigError(told.faults)
        except ConfigError:
            os.close(sealed)
            raise
        finally:
            os.close(answer)
        tree = ConfigTree()
        for source in told.sources:
            tree.add(source, {})
        tree.add(", ".join(told.sources), told.values)
        config = msgspec.structs.replace(build(tree, ConfigErrors()), notes=told.notes)
        return Reading(without_store(config), sealed, told.mark, told.scheme)

    def _ask(self, sealed: int, answer: int) -> _Told:
        child = fork(lambda: self._answer(sealed, answer), keep=(self._variables, sealed, answer))
        try:
            ended = select.select([child.pidfd], [], [], LIMIT)[0]
            if not ended:
                child.kill()
            os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
            status = child.reap()
        finally:
            child.close()
        if not ended:
            raise ConfigError([f"the configuration could not be read within {LIMIT:g} s; is its disk there?"])
        if status:
            raise ConfigError([f"the process that read the configuration ended with {status}; try again."])
        return msgspec.msgpack.decode(_content(answer), type=_Told)

    def _answer(self, sealed: int, answer: int) -> int:
        """In the child."""
        ignore_terminal_signals()
        told = _Told([], {}, (), 0, "", [])
        try:
            faults = ConfigErrors()
            tree = read(self._path, hidden_environment(self._variables), faults)
            config = build(tree, faults)
        except ConfigError as error:
            told.faults = error.errors
        else:
            tree.values.pop("store", None)
            told.sources, told.values, told.notes = tree.sources, tree.values, config.notes
            told.mark = _seal(config.store, sealed)
            told.scheme = config.store.url.partition(":")[0]
        _write(answer, msgspec.msgpack.encode(told))
        return 0


def reading(config: Config) -> Reading:
    """A whole configuration, its store section sealed."""
    sealed = _memory("workerd-store")
    return Reading(without_store(config), sealed, _seal(config.store, sealed))


def without_store(config: Config) -> Config:
    """The configuration as processes without store credentials may hold it."""
    return msgspec.structs.replace(config, store=StoreConfig(url=""))


def unseal(fd: int, config: Config) -> Config:
    """The configuration with the store's section, in a role that inherited the descriptor."""
    store = _decode_store(_content(fd))
    os.close(fd)
    return msgspec.structs.replace(config, store=store)


def _seal(store: StoreConfig, fd: int) -> int:
    section = msgspec.json.encode(store)
    _write(fd, section)
    return hash(section)


def _memory(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)


def _write(fd: int, content: bytes) -> None:
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
