"""The TCP machine: one client connection, sans-io. Nothing of what is said is looked at.

It has the states ROUTING, TUNNEL and CLOSED of :mod:`l7lb.protocols.tunnel`: a server is looked for as soon as the
client has connected, since in many protocols the server speaks first.
"""

from __future__ import annotations

from l7lb.core.contracts import Peer
from l7lb.core.facts import Facts
from l7lb.protocols.tunnel import Shared, TunnelMachine


class TcpMachine(TunnelMachine):
    """A client connection; see the module's head and :class:`l7lb.core.contracts.Session`."""

    __slots__ = ()

    def __init__(self, shared: Shared, peer: Peer, now: float) -> None:
        super().__init__(shared, Facts(shared.protocol, shared.listener, peer.client), peer, now)
