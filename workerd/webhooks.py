"""Delivers webhooks: the reserved handler, which posts what a job holds, signed, to a configured address.

Nothing here reads a store: the body was written when the event happened.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from workerd.config.webhook_config import WebhookConfig
from workerd.handler import Context, Failure

SIGNATURE_HEADER = "Workerd-Signature"
TIMEOUT_S = 10.0
"""For connecting, and for each wait for bytes; the handler's deadline ends it as a whole."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_FINAL = frozenset(range(300, 500)) - {408, 429}
"""Statuses that another attempt would meet again."""


class DeliveryFailed(Exception):
    """The receiver was not reached, or answered that it could not take it now."""


def signature(secret: bytes, body: bytes, at: int) -> str:
    """The value of the header: the time, and HMAC-SHA256 of time, dot and body in hex."""
    signed = hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={signed.hexdigest()}"


def secret_of(config: WebhookConfig) -> bytes:
    """The secret of its file, without a newline at the end. Raises OSError."""
    return Path(config.secret_file).read_bytes().removesuffix(b"\n").removesuffix(b"\r")


class Deliverer:
    """The handler `~webhook`."""

    def __init__(self, webhooks: Mapping[str, WebhookConfig]) -> None:
        self._webhooks = webhooks

    def __call__(self, ctx: Context, webhook: str, body: str) -> int:
        """Post the body; returns the receiver's status.

        Raises Failure for what another attempt would meet again, DeliveryFailed and OSError otherwise.
        """
        config = self._webhooks.get(webhook)
        if config is None:
            raise Failure(f'the webhook "{webhook}" is not configured any more')
        data = body.encode()
        secret = secret_of(config)
        if not secret:
            raise DeliveryFailed(f"{webhook}: {config.secret_file} is empty, and everybody could sign so")
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "workerd",
            "Idempotency-Key": ctx.job_id,
            SIGNATURE_HEADER: signature(secret, data, int(time.time())),
        }
        status = _post(config, data, headers)
        if status in _FINAL:
            moved = "a redirect, which is not followed" if status < 400 else "a refusal"
            raise Failure(f"{webhook}: the receiver answered {status}, {moved}")
        if not 200 <= status < 300:
            raise DeliveryFailed(f"{webhook}: the receiver answered {status}")
        return status


def _post(config: WebhookConfig, body: bytes, headers: Mapping[str, str]) -> int:
    url = urlsplit(config.url)
    secure = url.scheme == "https"
    host, port = url.hostname or "", url.port or (443 if secure else 80)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    # The socket leads to the very address that was looked at: a second resolution could give another one.
    sock = socket.create_connection((address_of(host, port, private=config.allow_private), port), TIMEOUT_S)
    try:
        if secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.sock = sock
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("POST", path, body, {"Host": url.netloc, **headers})
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise DeliveryFailed(f"the receiver does not speak HTTP: {type(error).__name__}") from None
    finally:
        sock.close()


def address_of(host: str, port: int, *, private: bool) -> str:
    """An address of the host. Raises Failure if any is private and may not be, OSError if there is none."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not private and not is_public(address):
            raise Failure(
                f"{host} resolves to {address}, which is not a public address; allow_private = true allows it"
            )
    return found[0]


def is_public(text: str) -> bool:
    """Whether an address belongs to the public internet, also where it only wraps an IPv4 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast
