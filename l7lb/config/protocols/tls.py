"""The section of a listener that passes TLS through."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from l7lb.config.limits import Countable
from l7lb.config.listeners import Listener, ListenerLimits, TunnelTimeouts
from l7lb.config.routes import HTTP_ONLY
from l7lb.config.section import Reading
from l7lb.config.units import Size, within
from l7lb.core import snapshot


class TlsLimits(ListenerLimits):
    """How many clients may come, and how much they may say."""

    client_hello_bytes: Annotated[Size, within(1024, 256 * 1024)] = Field(
        default=16 * 1024, description="Of the ClientHello, with all its keys and tickets; more is refused."
    )


class TlsPassthroughListener(Listener):
    """Clients of any protocol over TLS, which is passed through and routed by what its handshake shows."""

    kind: ClassVar[str] = "tls-passthrough"
    ends_tls: ClassVar[bool] = False
    conditions: ClassVar[tuple[str, ...]] = ("sni", "alpn", "source")
    impossible: ClassVar[tuple[str, ...]] = HTTP_ONLY
    shows: ClassVar[tuple[str, ...]] = ("tls_session", "sni", "alpn", "source")
    countable: ClassVar[Countable] = {"connections": ("source", "sni", "alpn", "listener")}
    countable_by_rule: ClassVar[Countable] = countable
    because: ClassVar[str] = ", since what is inside TLS is not decrypted"

    protocol: Literal["tls-passthrough"] = Field(description="What clients speak there.")
    timeouts: TunnelTimeouts = Field(default=TunnelTimeouts(), description="How long a client may take.")
    limits: TlsLimits = Field(default=TlsLimits(), description="How much a client may send.")

    def compiled(self, reading: Reading) -> snapshot.Listener:
        return snapshot.Listener(
            **self.common(reading),
            connections=self.limits.connections,
            backlog=self.limits.backlog,
            settings={
                "tunnel": self.timeouts.tunnel,
                "half_closed": self.timeouts.half_closed,
                "client_hello_bytes": self.limits.client_hello_bytes,
            },
        )
