"""A connected pool and the capacity that it reported."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from workerd.errors import FrameTooLarge
from workerd.job import Claim
from workerd.messages import Claims, Demand
from workerd.runtime.peer_server import Peer, PeerServer

FRAME = 8 << 20
"""Bytes of vars, params and the like after which another frame is begun."""


class PoolLink(Peer):
    """One connection of a pool."""

    def __init__(self, server: PeerServer[Any], sock: socket.socket) -> None:
        super().__init__(server, sock)
        self.handlers: tuple[str, ...] = ()
        self.sent = 0
        self._demand = Demand(received=0, room=0, handlers=())
        self._turn = 0

    @property
    def room(self) -> int:
        """How many more claims it can take, those on the way to it counted."""
        return self._demand.room - (self.sent - self._demand.received)

    def demand(self, demand: Demand) -> None:
        """What it asks for from now on."""
        self._demand = demand
        self.handlers = demand.handlers

    def in_turn(self) -> list[str]:
        """Its handlers, each time beginning with another one, so that its room goes round them."""
        if len(self.handlers) < 2:
            return list(self.handlers)
        self._turn = (self._turn + 1) % len(self.handlers)
        return [*self.handlers[self._turn :], *self.handlers[: self._turn]]

    def hand_over(self, claims: Sequence[Claim]) -> list[Claim]:
        """Send the claims; returns those that no frame can carry."""
        unsendable: list[Claim] = []
        for part in _parts(claims):
            try:
                self.channel.send(Claims(claims=part))
            except FrameTooLarge:
                unsendable += part
            else:
                self.sent += len(part)
        return unsendable


def _parts(claims: Sequence[Claim]) -> list[list[Claim]]:
    parts: list[list[Claim]] = [[]]
    size = 0
    for claim in claims:
        weight = _weight(claim)
        if size and size + weight > FRAME:
            parts.append([])
            size = 0
        parts[-1].append(claim)
        size += weight
    return [part for part in parts if part]


def _weight(claim: Claim) -> int:
    weight = 400 + len(claim.vars)
    if claim.request_id is not None:
        weight += len(claim.params or b"") + len(claim.extras or b"")
        weight += sum(map(len, (claim.needs or {}).values()))
    return weight
