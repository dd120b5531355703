"""What a listener's configuration says to a mail protocol."""

from __future__ import annotations

from typing import Any

import msgspec

from l7lb.core.snapshot import Listener

# What differs from MailSettings' defaults, by protocol: how long a server waits for its client's next command.
USUAL: dict[str, dict[str, Any]] = {"pop3": {"tunnel": 660.0}}


class MailSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A mail listener's settings. All times are seconds, all sizes bytes.

    ``cleartext`` says whether logins may come without TLS: ``after-tls`` (no) or ``always``. ``failures_per_address``
    failed logins in ``failures_window`` are free, then answers slow down (0: none is counted). ``recipients`` is
    ``split`` or ``first``. ``trusted`` networks are believed what they tell of their client (XCLIENT, ID), and
    ``hops`` is how many proxies may stand behind one another. ``capabilities`` stand for what the servers can do, where
    they are not to be learned. ``login`` is the time that a client has to log in, ``tunnel`` without a byte in either
    direction afterwards, and ``half_closed`` the same once one side has ended its half.
    """

    cleartext: str = "after-tls"
    mechanisms: tuple[str, ...] = ("plain", "login", "xoauth2", "oauthbearer")
    failures_per_address: int = 10
    failures_window: float = 60.0
    sessions_per_mailbox: int = 0
    sessions_per_address: int = 0
    recipients: str = "split"
    hostname: str = "l7lb"
    capabilities: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()
    hops: int = 5
    login_attempts: int = 3
    bad_commands: int = 10
    login: float = 60.0
    greeting: float = 30.0
    answer: float = 60.0
    tunnel: float = 1860.0
    half_closed: float = 60.0
    command: float = 300.0
    data_answer: float = 660.0
    line_bytes: int = 16_384
    literal_bytes: int = 65_536

    @classmethod
    def of(cls, listener: Listener) -> MailSettings:
        """The settings of a compiled listener; raises msgspec.ValidationError."""
        return msgspec.convert(USUAL.get(listener.protocol, {}) | listener.settings, cls)
