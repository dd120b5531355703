"""What is known of a TLS connection that is passed through."""

from __future__ import annotations

from collections.abc import Sequence

from l7lb.core.facts import Facts
from l7lb.core.snapshot import Listener
from l7lb.protocols.tls.hello import ClientHello, HelloFault, host_name


class TlsFacts(Facts):
    """The facts that a ClientHello shows. ``host`` is the SNI, empty where there is none; ``hello`` is None before."""

    __slots__ = ("hello",)

    def __init__(self, protocol: str, listener: str, source: str) -> None:
        super().__init__(protocol, listener, source)
        self.hello: ClientHello | None = None

    def show(self, hello: ClientHello) -> None:
        """This is what the client said."""
        self.hello = hello
        self.host = hello.sni

    def alpn(self) -> Sequence[bytes]:
        return () if self.hello is None else self.hello.alpn

    def tls_sessions(self) -> Sequence[bytes]:
        """The ticket comes first: with one, the identifier may be made up (RFC 5077 section 3.4)."""
        hello = self.hello
        if hello is None:
            return ()
        return [value for value in (hello.ticket, hello.session_id) if value]

    def text(self, kind: str, name: str) -> bytes | None:
        if kind == "sni":
            return self.host or None
        if kind == "alpn":
            return b",".join(self.alpn()) or None
        return None if kind == "host" else super().text(kind, name)


def explain_tls(listener: Listener, sni: str, alpn: Sequence[str], source: str) -> TlsFacts:
    """The facts of a client that shows these, for `l7lb explain`. Raises ValueError for a name that none can be."""
    facts = TlsFacts(listener.protocol, listener.name, source)
    hello = ClientHello(0x0303, b"")
    if sni:
        try:
            hello.sni = host_name(sni.encode())
        except HelloFault as fault:
            raise ValueError(f"{sni!r} can't be asked for: {fault.detail}") from None
    hello.alpn = tuple(name.encode() for name in alpn)
    facts.show(hello)
    return facts
