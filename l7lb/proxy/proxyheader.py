"""The opening stage of the PROXY protocol: listed peers must send a header, all others must not.

It takes exactly the header's bytes off the socket: it looks first (MSG_PEEK) and then takes what belongs to the header,
also where more is to come, so that a level-triggered loop does not report the same bytes again and again.
"""

from __future__ import annotations

import socket

from l7lb.core.contracts import Peer
from l7lb.core.proxy_protocol import SIGNATURE, begins_header
from l7lb.core.proxy_protocol.reading import HeaderFault, HeaderReader
from l7lb.core.snapshot import Listener
from l7lb.proxy.endpoint import DONT_WAIT
from l7lb.proxy.opening import DONE, READ, Opening, OpeningFailed, Stage, StageMaker
from l7lb.routing.networks import Networks

LOOK_BYTES = 1024
SERVER_FIRST_SECONDS = 0.2  # how long a client is looked at who may be waiting for the server's first word


class ProxyHeader(Stage):
    """Reads a listed peer's header."""

    __slots__ = ("reader",)

    name = "proxy"

    def __init__(self, limit: int) -> None:
        self.reader = HeaderReader(limit)

    def step(self, opening: Opening) -> int:
        reader, sock = self.reader, opening.sock
        while reader.header is None:
            try:
                data = sock.recv(LOOK_BYTES, DONT_WAIT | socket.MSG_PEEK)
            except BlockingIOError:
                return READ
            if not data:
                raise OpeningFailed("closed", "it left before its PROXY header was complete")
            opening.heard = True
            try:
                count = reader.feed(data)
            except HeaderFault as fault:
                raise OpeningFailed("malformed", str(fault)) from None
            sock.recv(count, DONT_WAIT)
        opening.peer = reader.header.peer(opening.peer)
        return DONE


class NoProxyHeader(Stage):
    """Refuses a header from a peer that is not listed, and leaves all other bytes where they are.

    Where the first bytes could still become a header, the kernel is told to report no less than one more
    (SO_RCVLOWAT); it can't be told so for unix sockets, whose doubtful bytes are left to the protocol.
    ``patience`` is for protocols in which the server speaks first: who is silent so long may wait for that.
    """

    __slots__ = ("_patience", "_seen")

    name = "proxy"

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._seen = 0

    def step(self, opening: Opening) -> int:
        sock = opening.sock
        try:
            data = sock.recv(len(SIGNATURE), DONT_WAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return READ
        opening.heard = bool(data)
        begins = begins_header(data)
        if begins:
            raise OpeningFailed("refused", "it is not listed, and sent a PROXY header all the same")
        if begins is False or len(data) == self._seen or sock.family == socket.AF_UNIX:
            return self._over(sock)  # as many bytes as before: it has ended
        self._seen = len(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._seen + 1)
        return READ

    def patience(self) -> float:
        return self._patience

    def silent(self, opening: Opening) -> int:
        return self._over(opening.sock)

    def _over(self, sock: socket.socket) -> int:
        if self._seen:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return DONE


def proxy_stage(listener: Listener) -> StageMaker | None:
    """How a listener's connections get their stage, where it has ``proxy_protocol``."""
    config = listener.proxy_protocol
    if config is None:
        return None
    networks, limit = Networks(config.sources), config.header_bytes
    patience = 0.0 if listener.client_first else SERVER_FIRST_SECONDS

    def make(peer: Peer) -> Stage:
        return ProxyHeader(limit) if peer.client in networks else NoProxyHeader(patience)

    return make
