"""What TCP offers to the rest of l7lb."""

from __future__ import annotations

from functools import partial

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.snapshot import Listener
from l7lb.protocols.tcp.machine import TcpMachine
from l7lb.protocols.tcp.settings import TcpSettings
from l7lb.protocols.tunnel import Shared


def sessions(listener: Listener) -> SessionFactory:
    """The session factory of a TCP listener; raises msgspec.ValidationError for settings that don't fit."""
    settings = TcpSettings.of(listener)
    return partial(TcpMachine, Shared(listener.name, "tcp", settings.tunnel, settings.half_closed))


SPEC = ProtocolSpec(name="tcp", sessions=sessions, probe="l7lb.protocols.tcp.probe:probe")
