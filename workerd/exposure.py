"""What other users and other hosts could read or reach with a configuration: sentences for `check`."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

from workerd.config.address_validators import is_local
from workerd.config.model import Config
from workerd.config.store_url import MySQLUrl, parse_store_url


def exposures(config: Config) -> list[str]:
    """One sentence for each, with what to do about it."""
    found = [
        _secret("store.password_file", config.store.password_file),
        _secret("gateway.token_file", config.gateway.token_file),
        *(
            _secret(f"webhooks.{name}.secret_file", hook.secret_file)
            for name, hook in config.webhooks.items()
        ),
        _gateway(config),
        _store(config),
    ]
    return [sentence for sentence in found if sentence]


def _secret(key: str, file: str) -> str:
    if not file:
        return ""
    with contextlib.suppress(OSError):  # whether this user can read it is checked elsewhere
        mode = stat.S_IMODE(Path(file).stat().st_mode)
        for bits, who in (
            (stat.S_IWOTH, "every user may change"),
            (stat.S_IROTH, "every user may read"),
            (stat.S_IWGRP, "its group may change"),
        ):
            if mode & bits:
                return f"{key}: {who} {file} (mode {mode:04o}); run `chmod 0640 {file}` or stricter."
    return ""


def _gateway(config: Config) -> str:
    listen = config.gateway.listen
    if is_local(listen):
        return ""
    return (
        f"gateway.listen: other hosts reach {listen} without TLS: tokens, vars and payloads can be read on "
        "the network. Put a TLS proxy in front, and listen on loopback or a Unix socket."
    )


def _store(config: Config) -> str:
    url = parse_store_url(config.store.url)
    if not isinstance(url, MySQLUrl) or url.is_local or url.tls.mode == "required":
        return ""
    how = "not encrypted" if url.tls.mode == "off" else "encrypted only if the server offers it"
    hosts = ", ".join(host.name for host in url.hosts)
    return (
        f"store.url: the connection to {hosts} is {how}; add ssl=required, and ssl_ca=FILE to check the "
        "server's certificate."
    )
