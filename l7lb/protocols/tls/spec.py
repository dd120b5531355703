"""What TLS passthrough offers to the rest of l7lb."""

from __future__ import annotations

from functools import partial

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.snapshot import Listener
from l7lb.protocols.tls.machine import TlsMachine, TlsShared
from l7lb.protocols.tls.settings import TlsSettings

NAME = "tls-passthrough"


def sessions(listener: Listener) -> SessionFactory:
    """The session factory of a listener; raises msgspec.ValidationError for settings that don't fit."""
    return partial(TlsMachine, TlsShared(listener.name, NAME, TlsSettings.of(listener), listener.handshake))


SPEC = ProtocolSpec(name=NAME, sessions=sessions, probe="l7lb.protocols.tls.probe:probe")
