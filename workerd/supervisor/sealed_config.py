"""The configuration as the supervisor may hold it: without the store section, which is sealed apart.

What a process once held stays in its memory and in that of everything it forks. So files and variables
are read in a child, and only the roles that use the store read what it sealed.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from workerd.config import token_file
from workerd.config.build import build
from workerd.config.model import Config, StoreConfig
from workerd.config.reader import PATH_VARIABLE, ConfigErrors, ConfigTree, read
from workerd.config.store_url import may_be_encrypted
from workerd.errors import ConfigError
from workerd.runtime.child import fork, ignore_terminal_signals
from workerd.runtime.hidden_environment import hidden_environment, hide_environment
from workerd.text import death_text

READ_TIMEOUT_S = 30.0
"""Files on a dead server may never answer."""

_decode_store = msgspec.json.Decoder(StoreConfig).decode  # made once, for every role that is forked


@dataclass(frozen=True)
class SealedConfig:
    """A configuration without its store section.

    `fd`: an anonymous file that holds the section. `digest`: differs when the section differs.
    `scheme`: of the store's URL. `encrypted`: connections to it may use TLS.
    """

    config: Config
    fd: int
    digest: int
    scheme: str = ""
    encrypted: bool = False


class _Answer(msgspec.Struct, array_like=True):
    """What the child read: all values but those of the store, or every error."""

    sources: list[str]
    values: dict[str, Any]
    notes: tuple[str, ...]
    digest: int
    scheme: str
    encrypted: bool
    errors: list[str]


class SealedConfigReader:
    """Reads the configuration of this node, at start and at reload.

    It takes the WORKERD_ variables out of this process and keeps them where only its child reads them.
    """

    def __init__(self, path: Path | None) -> None:
        named = os.environ.get(PATH_VARIABLE)
        if path is None and named:
            path = Path(named)
        self._path = path.absolute() if path is not None else None
        self._variables = hide_environment("WORKERD_")
        self._host_name = ""

    def read(self) -> SealedConfig:
        """The configuration as it is now. Raises ConfigError with all errors."""
        try:
            store = _memory_file("workerd-store")
            try:
                return self._sealed(self._ask_child(store), store)
            except BaseException:
                os.close(store)
                raise
        except OSError as error:  # no process or descriptor to spare
            raise ConfigError(
                [f"the configuration could not be read: {error.strerror}; raise the limits of this service."]
            ) from error

    def _sealed(self, answer: _Answer, store: int) -> SealedConfig:
        if answer.errors:
            raise ConfigError(answer.errors)
        tree = ConfigTree()
        for source in answer.sources:
            tree.add(source, {})
        tree.add(", ".join(answer.sources), answer.values)
        config = msgspec.structs.replace(build(tree, ConfigErrors()), notes=answer.notes)
        if not answer.values.get("node", {}).get("name"):
            # The host's name at the first reading: a node stays who it is when its host is renamed.
            self._host_name = self._host_name or config.node.name
            config = msgspec.structs.replace(
                config, node=msgspec.structs.replace(config.node, name=self._host_name)
            )
        return SealedConfig(_without_store(config), store, answer.digest, answer.scheme, answer.encrypted)

    def _ask_child(self, store: int) -> _Answer:
        answer_fd = _memory_file("workerd-configuration")
        try:
            return self._read_in_child(store, answer_fd)
        finally:
            os.close(answer_fd)

    def _read_in_child(self, store: int, answer_fd: int) -> _Answer:
        child = fork(lambda: self._child_main(store, answer_fd), keep=(self._variables, store, answer_fd))
        try:
            poll = select.poll()  # select takes no descriptor above 1023
            poll.register(child.pidfd, select.POLLIN)
            ended = poll.poll(READ_TIMEOUT_S * 1000)
            if not ended:
                child.kill()
            os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
            status = child.reap()
        finally:
            child.close()
        if not ended:
            raise ConfigError(
                [f"the configuration could not be read within {READ_TIMEOUT_S:g} s; check its file system."]
            )
        if status:
            raise ConfigError([f"the process that read the configuration {death_text(status)}; try again."])
        return msgspec.msgpack.decode(_content(answer_fd), type=_Answer)

    def _child_main(self, store: int, answer_fd: int) -> int:
        ignore_terminal_signals()
        answer = _Answer([], {}, (), 0, "", False, [])
        try:
            errors = ConfigErrors()
            tree = read(self._path, hidden_environment(self._variables), errors)
            config = build(tree, errors)
            token_file.check(config)
        except ConfigError as error:
            answer.errors = error.errors
        else:
            tree.values.pop("store", None)
            answer.sources, answer.values, answer.notes = tree.sources, tree.values, config.notes
            answer.digest = _seal_store(config.store, store)
            answer.scheme = config.store.url.partition(":")[0]
            answer.encrypted = may_be_encrypted(config.store.url)
        _write(answer_fd, msgspec.msgpack.encode(answer))
        return 0


def seal(config: Config) -> SealedConfig:
    """A configuration that is already in memory, its store section sealed."""
    fd = _memory_file("workerd-store")
    return SealedConfig(_without_store(config), fd, _seal_store(config.store, fd))


def unseal(fd: int, config: Config) -> Config:
    """The configuration with its store section, in a role that inherited `fd`; closes it."""
    store = _decode_store(_content(fd))
    os.close(fd)
    return msgspec.structs.replace(config, store=store)


def _without_store(config: Config) -> Config:
    return msgspec.structs.replace(config, store=StoreConfig(url=""))


def _seal_store(store: StoreConfig, fd: int) -> int:
    section = msgspec.json.encode(store)
    _write(fd, section)
    return hash(section)


def _memory_file(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)


def _write(fd: int, content: bytes) -> None:
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
