"""What LMTP offers to the rest of l7lb."""

from __future__ import annotations

from functools import partial

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.snapshot import Listener
from l7lb.protocols.lmtp.machine import LmtpMachine
from l7lb.protocols.mail.esmtp_shared import EsmtpShared

NAME = "lmtp"


def sessions(listener: Listener) -> SessionFactory:
    """The session factory of a listener; raises msgspec.ValidationError for settings that don't fit."""
    return partial(LmtpMachine, EsmtpShared(listener, b"LMTP", b"LHLO", logs_in=False))


SPEC = ProtocolSpec(name=NAME, sessions=sessions, probe="l7lb.protocols.lmtp.probe:probe")
