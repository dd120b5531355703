"""The protocols, each a folder of one shape: spec, machine, session, probe. They don't import one another."""

from __future__ import annotations

from l7lb.core.contracts import ProtocolSpec
from l7lb.protocols.http.spec import SPEC as HTTP
from l7lb.protocols.imap4.spec import SPEC as IMAP4
from l7lb.protocols.lmtp.spec import SPEC as LMTP
from l7lb.protocols.managesieve.spec import SPEC as MANAGESIEVE
from l7lb.protocols.pop3.spec import SPEC as POP3
from l7lb.protocols.smtp.spec import SMTP, SUBMISSION
from l7lb.protocols.tcp.spec import SPEC as TCP
from l7lb.protocols.tls.spec import SPEC as TLS

PROTOCOLS: dict[str, ProtocolSpec] = {
    spec.name: spec for spec in (HTTP, TLS, TCP, IMAP4, POP3, MANAGESIEVE, SMTP, SUBMISSION, LMTP)
}
