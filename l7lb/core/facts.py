"""What is known of a connection or request when it is routed.

A protocol fills a subclass of :class:`Facts`; matchers, persistence and balancers read it and know nothing
else of the protocol. Text from the wire stays ``bytes``: it is compared as it came, never decoded on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mypy_extensions import mypyc_attr

NOTHING: Final[Sequence[bytes]] = ()


@mypyc_attr(allow_interpreted_subclasses=True, acyclic=True)
class Facts:
    """The facts that every protocol has; a protocol's own facts are attributes of its subclass.

    ``source`` is the client's address as text without port (the one a trusted proxy told, if any);
    ``host`` and ``path`` are normalised: lower case without port, and without dot segments.
    A fact that a protocol does not have is empty. ``wait`` is there only where a rate limit refused them: in how many
    seconds it would not. Of mail, ``address`` is the canonical address (see :mod:`l7lb.core.mailbox`) and ``mailbox``
    the name of its store: the same, unless a directory says otherwise. Whatever has a ``mailbox`` is kept on that
    mailbox's server.
    """

    __slots__ = ("address", "host", "listener", "mailbox", "method", "path", "protocol", "scheme", "source", "wait")
    wait: float

    def __init__(self, protocol: str, listener: str, source: str) -> None:
        self.protocol = protocol
        self.listener = listener
        self.source = source
        self.scheme = b""
        self.host = b""
        self.path = b""
        self.method = b""
        self.address = b""
        self.mailbox = b""

    def header(self, name: bytes) -> Sequence[bytes]:
        """The values of a header, by its name in lower case, in the order they came."""
        return NOTHING

    def cookie(self, name: bytes) -> Sequence[bytes]:
        """The values of a cookie of that exact name."""
        return NOTHING

    def query(self, name: bytes) -> Sequence[bytes]:
        """The percent-decoded values of a query parameter of that exact name."""
        return NOTHING

    def alpn(self) -> Sequence[bytes]:
        """The protocols that a TLS client offers, in its order; for TLS that is passed through."""
        return NOTHING

    def tls_sessions(self) -> Sequence[bytes]:
        """What a TLS client shows of an earlier session: its ticket, its identifier."""
        return NOTHING

    def text(self, kind: str, name: str) -> bytes | None:
        """One fact by its name in the configuration (``path``, ``header`` with a name, ...), for hashing.

        None where this connection does not have it.
        """
        if kind == "source":
            return self.source.encode()
        if kind == "host":
            return self.host or None
        if kind == "path":
            return self.path or None
        if kind == "method":
            return self.method or None
        if kind == "mailbox":
            return self.mailbox or None
        values: Sequence[bytes] = NOTHING
        if kind == "header":
            values = self.header(name.lower().encode())
        elif kind == "cookie":
            values = self.cookie(name.encode())
        elif kind == "query":
            values = self.query(name.encode())
        return values[0] if values else None
