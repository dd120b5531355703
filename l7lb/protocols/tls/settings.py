"""What a listener's configuration says to TLS that is passed through."""

from __future__ import annotations

import msgspec

from l7lb.core.snapshot import Listener


class TlsSettings(msgspec.Struct, frozen=True):
    """``tunnel`` is the seconds without a byte that end a session, ``half_closed`` the same once one side has ended its
    half, ``client_hello_bytes`` the longest ClientHello.
    """

    tunnel: float = 3600.0
    half_closed: float = 300.0
    client_hello_bytes: int = 16 * 1024

    @classmethod
    def of(cls, listener: Listener) -> TlsSettings:
        """The settings of a compiled listener; raises msgspec.ValidationError."""
        return msgspec.convert(listener.settings, cls)
