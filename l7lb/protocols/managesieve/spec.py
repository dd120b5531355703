"""What ManageSieve offers to the rest of l7lb."""

from __future__ import annotations

from functools import partial

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.snapshot import Listener
from l7lb.protocols.managesieve.session import SieveSession, SieveShared


def sessions(listener: Listener) -> SessionFactory:
    """The session factory of a ManageSieve listener; raises msgspec.ValidationError for settings that don't fit."""
    return partial(SieveSession, SieveShared(listener))


SPEC = ProtocolSpec(name="managesieve", sessions=sessions, probe="l7lb.protocols.managesieve.probe:probe")
