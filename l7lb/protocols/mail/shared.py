"""What all connections of one mail listener have in common, for one snapshot."""

from __future__ import annotations

from collections.abc import Sequence

from l7lb.core.contracts import Peer
from l7lb.core.snapshot import Listener
from l7lb.protocols.mail.settings import MailSettings
from l7lb.routing.networks import UNIX, Networks


class MailShared:
    """A listener's compiled form. A protocol derives its own where its sessions share more, such as what they have
    learned of the servers.

    ``starttls``: the listener has certificates, and clients ask for TLS; ``certificates``: it asks them for theirs.
    """

    __slots__ = ("addresses", "certificates", "listener", "mechanisms", "protocol", "settings", "starttls", "trusted")

    def __init__(self, listener: Listener) -> None:
        self.settings = MailSettings.of(listener)
        self.listener = listener.name
        self.protocol = listener.protocol
        self.addresses = listener.addresses
        self.starttls = listener.tls is not None and listener.tls.mode == "starttls"
        self.certificates = listener.tls is not None and bool(listener.tls.client_certificate)
        self.mechanisms: Sequence[str] = self.settings.mechanisms
        self.trusted = Networks(self.settings.trusted) if self.settings.trusted else None

    def trusts(self, peer: Peer) -> bool:
        """Whether this peer is believed what it tells of its own client."""
        trusted = self.trusted
        return trusted is not None and peer.client in trusted

    def offered(self, peer: Peer) -> list[str]:
        """The mechanisms that this client may log in by now, in lower case; none while it has to ask for TLS first."""
        if not self.confidential(peer):
            return []
        offered = [name for name in self.mechanisms if name != "external"]
        return [*offered, "external"] if certified_name(peer) and self.certificates else offered

    def confidential(self, peer: Peer) -> bool:
        """Whether a password may be sent: nobody listens, or the listener's operator doesn't mind."""
        return peer.tls or self.settings.cleartext == "always" or peer.client == UNIX

    def offers_tls(self, peer: Peer) -> bool:
        """Whether this client can ask for TLS."""
        return self.starttls and not peer.tls


def certified_name(peer: Peer) -> bytes:
    """The name that the client's certificate proves, empty where it has none from a CA that is trusted."""
    handshake = peer.handshake
    certificate = handshake.certificate if handshake is not None else None
    if certificate is None or not certificate.verified:
        return b""
    return certificate.common_name.encode()
