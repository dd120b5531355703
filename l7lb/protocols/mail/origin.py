"""Who the client is behind what stands in front: as its connection shows, or as a trusted proxy tells."""

from __future__ import annotations

from l7lb.core.contracts import Peer
from l7lb.routing.networks import packed


class Origin:
    """The client that servers and records are told of.

    ``hops`` is how many proxies may still follow, so that none leads back to itself: less than 0 is one too many.
    ``session`` is the name that the proxy in front gave the session, empty where it gave none.
    """

    __slots__ = ("client", "hops", "local", "local_port", "port", "session")

    def __init__(self, peer: Peer, hops: int) -> None:
        self.client = peer.client
        self.port = peer.client_port
        self.local = peer.local
        self.local_port = peer.local_port
        self.hops = hops
        self.session = b""

    def told(self, address: bytes, port: bytes = b"") -> bool:
        """A trusted proxy tells its client's address. Returns whether that is one; nothing changes if not."""
        text = address.decode("latin-1").strip()
        if text[:5].lower() == "ipv6:":
            text = text[5:]
        if packed(text) is None:
            return False
        self.client = text
        self.port = _port(port)
        return True

    def arrived(self, address: bytes, port: bytes = b"") -> bool:
        """A trusted proxy tells where its client arrived."""
        text = address.decode("latin-1").strip()
        if packed(text) is None:
            return False
        self.local = text
        self.local_port = _port(port)
        return True

    def limited(self, hops: bytes) -> None:
        """A trusted proxy tells how many more may follow it."""
        if hops.isdigit() and len(hops) < 4:
            self.hops = min(self.hops, int(hops) - 1)


def _port(text: bytes) -> int:
    number = int(text) if text.isdigit() and len(text) <= 5 else 0
    return number if number < 65_536 else 0
