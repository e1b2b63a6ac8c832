"""Validators of addresses: of the store, of the gateway's socket and hosts, of webhooks."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

from workerd.config.store_url import STORE_URL_FORM, parse_store_url
from workerd.config.validators import validator
from workerd.config.wrong_value import wrong
from workerd.errors import InvalidValue

_HOST_PATTERN = re.compile(
    r"(\*\.)?[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?"
)


@validator('a host name, with or without port, or "*.example.org" for all names below it')
def host_pattern(value: Any) -> str:
    if not isinstance(value, str) or not _HOST_PATTERN.fullmatch(value):
        raise wrong(host_pattern.expects, value)
    return value


@validator('an address such as "https://example.org/hook"')
def http_url(value: Any) -> str:
    """An address of HTTP without a user name: a secret in it would be in logs and backups."""
    is_text = isinstance(value, str) and value.isascii() and value.isprintable()
    try:
        parts = urlsplit(value) if is_text else None
        fits = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
        fits = fits and parts is not None and parts.port != 0 and "@" not in parts.netloc and " " not in value
    except ValueError:  # a port that is no number, an IPv6 address without its end
        fits = False
    if not fits:
        raise wrong(http_url.expects, value)
    return str(value)


@validator('"host:port", "unix:/path/to/socket" or ""')
def listen(value: Any) -> str:
    """`host:port`, `[v6]:port`, `unix:/path`, or "" for off."""
    if isinstance(value, str):
        if not value:
            return value
        if value.startswith("unix:") and value.removeprefix("unix:").startswith("/") and "\0" not in value:
            return value
        host, colon, port = value.rpartition(":")
        if colon and host and port.isascii() and port.isdigit() and int(port) < 65536 and _is_host(host):
            return value
    raise wrong(listen.expects, value)


def _is_host(host: str) -> bool:
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:].removesuffix("]"))
        except ValueError:
            return False
        return host.endswith("]")
    return bool(re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host))


def is_local(address: str) -> bool:
    """Whether a `listen` address can be reached from this host only."""
    if not address or address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@validator(STORE_URL_FORM)
def store_url(value: Any) -> str:
    """A URL that the store accepts; no message shows it, as it may hold a password."""
    if not isinstance(value, str):
        raise InvalidValue(f"expected {STORE_URL_FORM}, got something else")
    parse_store_url(value)
    return value
