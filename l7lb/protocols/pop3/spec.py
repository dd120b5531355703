"""What POP3 offers to the rest of l7lb."""

from __future__ import annotations

from functools import partial

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.snapshot import Listener
from l7lb.protocols.pop3.session import Pop3Session, Pop3Shared


def sessions(listener: Listener) -> SessionFactory:
    """The session factory of a POP3 listener; raises msgspec.ValidationError for settings that don't fit."""
    return partial(Pop3Session, Pop3Shared(listener))


SPEC = ProtocolSpec(name="pop3", sessions=sessions, probe="l7lb.protocols.pop3.probe:probe")
