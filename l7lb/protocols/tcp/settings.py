"""What a listener's configuration says to TCP."""

from __future__ import annotations

import msgspec

from l7lb.core.snapshot import Listener


class TcpSettings(msgspec.Struct, frozen=True):
    """A TCP listener's settings. ``tunnel`` is the seconds without a byte in either direction that end a session,
    ``half_closed`` the same once one side has ended its half.
    """

    tunnel: float = 3600.0
    half_closed: float = 300.0

    @classmethod
    def of(cls, listener: Listener) -> TcpSettings:
        """The settings of a compiled listener; raises msgspec.ValidationError."""
        return msgspec.convert(listener.settings, cls)
