"""What all connections of one SMTP, submission or LMTP listener have in common, for one snapshot."""

from __future__ import annotations

from l7lb.core.snapshot import Listener
from l7lb.protocols.mail.esmtp_offers import Offers
from l7lb.protocols.mail.shared import MailShared

RECIPIENTS = 1000  # of one message; RFC 5321 section 4.5.3.1.8 asks for 100 at least


class EsmtpShared(MailShared):
    """``banner`` is what stands behind the host's name in the greeting, ``server_hello`` the verb that a session begins
    with. ``logs_in``: mail is taken only behind AUTH, and goes where the login's mailbox is.
    """

    __slots__ = ("banner", "hostname", "logs_in", "offers", "server_hello")

    def __init__(self, listener: Listener, banner: bytes, server_hello: bytes, logs_in: bool) -> None:
        super().__init__(listener)
        self.hostname = self.settings.hostname.encode()
        self.banner = banner
        self.server_hello = server_hello
        self.logs_in = logs_in
        self.offers = Offers(listener, self.settings.capabilities)
