"""XCLIENT as Dovecot speaks it in POP3 and ManageSieve: ``NAME=value`` fields behind the word, with spaces between."""

from __future__ import annotations

import re
from collections.abc import Sequence

from l7lb.core.contracts import Assignment
from l7lb.protocols.mail.origin import Origin
from l7lb.routing.networks import UNIX

SESSION = re.compile(rb"[!-~]{1,128}\Z")


def believe(origin: Origin, fields: Sequence[bytes]) -> bool:
    """Take over what a trusted proxy tells of its client. False, and nothing changes, if its address is none."""
    found = {}
    for field in fields:
        name, _, value = field.partition(b"=")
        found[name.upper()] = value
    if b"ADDR" in found and not origin.told(found[b"ADDR"], found.get(b"PORT", b"")):
        return False
    if b"TTL" in found:
        origin.limited(found[b"TTL"])
    if SESSION.match(found.get(b"SESSION", b"")):
        origin.session = found[b"SESSION"]
    return True


def announcement(origin: Origin, assignment: Assignment, protocol: str) -> bytes:
    """The fields for this server, empty where its pool wants none, or where the client has no address."""
    if assignment.pool.config.client_address.get(protocol) != "xclient" or origin.client == UNIX:
        return b""
    session = b" SESSION=" + origin.session if origin.session else b""
    return f"ADDR={origin.client} PORT={origin.port} TTL={origin.hops}".encode() + session
