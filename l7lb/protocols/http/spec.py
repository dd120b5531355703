"""What HTTP offers to the rest of l7lb."""

from __future__ import annotations

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.dates import DATES
from l7lb.core.snapshot import Listener
from l7lb.protocols.http.ending import Shared
from l7lb.protocols.http.http2.connection import Sessions
from l7lb.protocols.http.settings import HttpSettings


def sessions(listener: Listener) -> SessionFactory:
    """The session factory of an HTTP listener; raises msgspec.ValidationError for settings that don't fit."""
    settings = HttpSettings.of(listener)
    return Sessions(Shared(listener.name, settings, DATES, settings.webmail(listener)))


SPEC = ProtocolSpec(name="http", sessions=sessions, probe="l7lb.protocols.http.probe:probe")
