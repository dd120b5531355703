"""What is known of a mail session when it is routed."""

from __future__ import annotations

from l7lb.core.facts import Facts


class MailFacts(Facts):
    """One login, or one recipient.

    ``user`` is the login as the client typed it, ``authorization`` the identity that it asked for instead (SASL's
    authzid; empty: its own), ``password`` what proves it: with ``token`` a bearer token (RFC 6750). ``mechanism`` is
    SASL's name in lower case, or ``login`` for a protocol's own command. ``attempt`` counts the connection's logins
    from 1; ``tls``: the client came over TLS.
    """

    __slots__ = ("attempt", "authorization", "mechanism", "password", "tls", "token", "user")

    def __init__(self, protocol: str, listener: str, source: str) -> None:
        super().__init__(protocol, listener, source)
        self.user = b""
        self.authorization = b""
        self.password = b""
        self.mechanism = ""
        self.token = False
        self.attempt = 1
        self.tls = False
