"""A connected pool: the capacity that it reported, and claims on their way to it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, TypeAlias

from workerd.errors import FrameTooLarge
from workerd.job import Claim
from workerd.messages import Claims, Demand
from workerd.runtime.peer_server import Peer, PeerServer

MAX_FRAME_BYTES = 8 << 20
"""Bytes of vars, params and the like after which another frame is begun."""
CLAIM_BYTES = 400
"""Of a claim in a frame, without them."""


class PoolLink(Peer):
    """One connection of a pool; `sent` counts the claims that it was sent."""

    def __init__(self, server: PeerServer[Any], sock: socket.socket) -> None:
        super().__init__(server, sock)
        self.handlers: tuple[str, ...] = ()
        self.sent = 0
        self._demand = Demand(received=0, room=0, handlers=())

    @property
    def capacity(self) -> int:
        """How many more claims it can take, those in transit counted."""
        return self._demand.room - (self.sent - self._demand.received)

    def on_demand(self, demand: Demand) -> None:
        """The pool reported its capacity and the handlers to claim for."""
        self._demand = demand
        self.handlers = demand.handlers

    def hand_over(self, claims: Sequence[Claim]) -> list[Claim]:
        """Send the claims; returns those too large for a frame."""
        unsendable: list[Claim] = []
        for part in _parts(claims):
            try:
                self.channel.send(Claims(claims=part))
            except FrameTooLarge:
                unsendable += part
            else:
                self.sent += len(part)
        return unsendable


PoolLinks: TypeAlias = PeerServer[PoolLink]


def _parts(claims: Sequence[Claim]) -> list[list[Claim]]:
    parts: list[list[Claim]] = [[]]
    size = 0
    for claim in claims:
        claim_size = _size(claim)
        if size and size + claim_size > MAX_FRAME_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(claim)
        size += claim_size
    return [part for part in parts if part]


def _size(claim: Claim) -> int:
    size = CLAIM_BYTES + len(claim.vars)
    if claim.request_id is not None:
        size += len(claim.params or b"") + len(claim.extras or b"")
        size += sum(map(len, (claim.needs or {}).values()))
    return size
