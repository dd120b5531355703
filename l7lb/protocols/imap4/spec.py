"""What IMAP4 offers to the rest of l7lb."""

from __future__ import annotations

from functools import partial

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.snapshot import Listener
from l7lb.protocols.imap4.machine import ImapMachine, ImapShared


def sessions(listener: Listener) -> SessionFactory:
    """The session factory of an IMAP listener; raises msgspec.ValidationError for settings that don't fit."""
    return partial(ImapMachine, ImapShared(listener))


SPEC = ProtocolSpec(name="imap4", sessions=sessions, probe="l7lb.protocols.imap4.probe:probe")
