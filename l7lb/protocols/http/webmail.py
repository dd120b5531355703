"""Which mailbox a request is about: a web mail program says it in a header, a cookie or the URL's query."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import msgspec

from l7lb.core.facts import Facts
from l7lb.core.mailbox import canonical
from l7lb.core.snapshot import Addresses

LONGEST = 1024  # bytes of an address; more is no mailbox


class MailboxPlace(msgspec.Struct, frozen=True):
    """Where the address stands: ``kind`` is ``header``, ``cookie`` or ``query``."""

    kind: str
    name: str


class Webmail:
    """Gives facts their address and mailbox, canonical as every mail protocol's, where the request names one."""

    def __init__(self, place: MailboxPlace, rules: Addresses) -> None:
        self._place = place
        self._name = place.name.lower().encode() if place.kind == "header" else place.name.encode()
        self._rules = rules

    def __call__(self, facts: Facts) -> None:
        """Look at a request's facts."""
        kind = self._place.kind
        if kind == "header":
            values = facts.header(self._name)
        elif kind == "cookie":
            # Cookies can't hold every character, and programs write an @ as %40.
            values = [unquote_to_bytes(value) for value in facts.cookie(self._name)]
        else:
            values = facts.query(self._name)
        typed = values[0].strip() if values else b""
        if typed and len(typed) <= LONGEST:
            facts.address = facts.mailbox = canonical(typed, self._rules)
