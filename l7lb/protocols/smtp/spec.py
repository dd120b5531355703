"""What SMTP and submission offer to the rest of l7lb."""

from __future__ import annotations

from functools import partial

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.snapshot import Listener
from l7lb.protocols.mail.esmtp_shared import EsmtpShared
from l7lb.protocols.smtp.machine import SmtpMachine
from l7lb.protocols.smtp.submission import SubmissionMachine


def relay(listener: Listener) -> SessionFactory:
    """The session factory of a listener; raises msgspec.ValidationError for settings that don't fit."""
    return partial(SmtpMachine, EsmtpShared(listener, b"ESMTP", b"EHLO", logs_in=False))


def submission(listener: Listener) -> SessionFactory:
    """The same for submission."""
    return partial(SubmissionMachine, EsmtpShared(listener, b"ESMTP", b"EHLO", logs_in=True))


SMTP = ProtocolSpec(name="smtp", sessions=relay, probe="l7lb.protocols.smtp.probe:probe")
SUBMISSION = ProtocolSpec(name="submission", sessions=submission, probe="l7lb.protocols.smtp.probe:probe")
