"""The TLS handshake as a stage of a client's connection (see :mod:`l7lb.proxy.opening`)."""

from __future__ import annotations

import re
import ssl
from socket import MSG_PEEK
from typing import Any, ClassVar

from l7lb.core.contracts import ClientCertificate, Handshake
from l7lb.core.names import escape_name
from l7lb.proxy import counts as columns
from l7lb.proxy.endpoint import DONT_WAIT
from l7lb.proxy.opening import DONE, READ, Opening, OpeningFailed, Stage, StageMaker
from l7lb.proxy.tls import Tls
from l7lb.proxy.tls_contexts import Terminator

PEEK_BYTES = 4096  # of a ClientHello, in which a ticket of an older key is looked for
HANDSHAKE_RECORD = 22

METHOD = re.compile(rb"[A-Z]{3,16} |[A-Z]{1,16}\Z")  # or its first letters: no TLS begins with a letter
# What a client gets that speaks something else: the record of a fatal alert, protocol_version (RFC 8446 section 6).
ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
TEXT = b"This port speaks HTTPS: write https:// in place of http:// in the address.\n"
PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Cache-Control: no-store\r\nConnection: close\r\n\r\n%b" % (len(TEXT), TEXT)
)

# OpenSSL's reasons, by what they come to.
UNSUPPORTED = frozenset(
    {
        "HTTP_REQUEST", "INAPPROPRIATE_FALLBACK", "NO_PROTOCOLS_AVAILABLE", "NO_SHARED_CIPHER", "NO_SHARED_GROUPS",
        "NO_SHARED_SIGNATURE_ALGORITHMS", "NO_SUITABLE_GROUPS", "NO_SUITABLE_KEY_SHARE",
        "NO_SUITABLE_SIGNATURE_ALGORITHM", "UNKNOWN_PROTOCOL", "UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW",
        "WRONG_VERSION_NUMBER",
    }
)  # fmt: skip
CERTIFICATE = frozenset({"CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE"})
# In the order of RFC 4514, by the names that the ssl module gives.
SHORT_NAMES = {
    "commonName": "CN", "countryName": "C", "domainComponent": "DC", "localityName": "L", "organizationName": "O",
    "organizationalUnitName": "OU", "stateOrProvinceName": "ST", "streetAddress": "STREET", "userId": "UID",
}  # fmt: skip


class TlsStage(Stage):
    """One connection's handshake."""

    __slots__ = ("_protocol", "_terminator", "_tls")

    name: ClassVar[str] = "tls"

    def __init__(self, terminator: Terminator, protocol: str) -> None:
        self._terminator = terminator
        self._protocol = protocol
        self._tls: Tls | None = None

    def step(self, opening: Opening) -> int:
        tls = self._tls
        if tls is None:
            tls = self._begin(opening)
            if tls is None:
                return READ
        try:
            wanted = tls.shake()
        except ssl.SSLEOFError:
            raise OpeningFailed("closed", "the client went away") from None
        except ssl.SSLError as error:
            tls.dispose()
            opening.connection.tls = None  # it has sent its alert; what comes now is not looked at
            raise OpeningFailed(*judge(error), told=True) from None
        if wanted == DONE:
            self._finish(opening, tls)
        return wanted

    def _begin(self, opening: Opening) -> Tls | None:
        """The layer for a client whose first bytes are there and look like TLS. None: they are to be waited for."""
        sock = opening.sock
        try:
            hello = sock.recv(PEEK_BYTES, MSG_PEEK | DONT_WAIT)
        except BlockingIOError:
            return None
        if not hello:
            raise OpeningFailed("closed", "the client went away without a word")
        opening.heard = True
        if hello[0] != HANDSHAKE_RECORD:
            if self._protocol == "http" and METHOD.match(hello):
                raise OpeningFailed("unsupported", "HTTP without TLS", PLAIN_HTTP)
            raise OpeningFailed("malformed", "this is no TLS", ALERT)
        terminator = self._terminator
        sock.setblocking(False)
        tls = self._tls = opening.connection.tls = Tls.server(sock, terminator, terminator.base(hello))
        return tls

    def _finish(self, opening: Opening, tls: Tls) -> None:
        peer, listener, inner = opening.peer, opening.connection.listener, tls.inner
        cipher = inner.cipher()
        handshake = Handshake(
            (tls.sni or "").encode("ascii", "replace"),
            (inner.selected_alpn_protocol() or "").encode("ascii", "replace"),
            inner.version() or "",
            cipher[0] if cipher else "",
        )
        handshake.resumed = bool(inner.session_reused)
        handshake.asked = bool(self._terminator.config.client_ca)
        if handshake.asked:
            handshake.certificate = certificate_of(inner)
        peer.tls = True
        peer.handshake = handshake
        listener.cells[listener.row + (columns.RESUMED if handshake.resumed else columns.HANDSHAKES)] += 1


def maker(terminator: Terminator, protocol: str) -> StageMaker:
    """What makes the stage for each connection of a listener."""
    return lambda peer: TlsStage(terminator, protocol)  # noqa: ARG005


def judge(error: ssl.SSLError) -> tuple[str, str]:
    """Why a handshake failed: one of :data:`l7lb.proxy.counts.REASONS`, and what an operator should read."""
    reason = getattr(error, "reason", None) or ""
    text = getattr(error, "verify_message", "") or reason.lower().replace("_", " ") or str(error)
    if reason == "UNEXPECTED_EOF_WHILE_READING":  # which older Pythons don't make an SSLEOFError
        return "closed", "the client went away"
    if reason in CERTIFICATE:
        return "certificate", f"the client's certificate: {text}"
    if reason in UNSUPPORTED:
        return "unsupported", text
    if "_ALERT_" in reason:
        return "refused", f"the client says: {reason.partition('_ALERT_')[2].lower().replace('_', ' ')}"
    return "malformed", text


def certificate_of(inner: Any) -> ClientCertificate | None:
    """The certificate that the client has shown and that was verified; None where it has none."""
    der = inner.getpeercert(True)
    if not der:
        return None
    shown = inner.getpeercert(False) or {}
    subject = shown.get("subject", ())
    common = next((value for part in subject for name, value in part if name == "commonName"), "")
    certificate = ClientCertificate(common, name_text(subject), True, der)
    certificate.issuer = name_text(shown.get("issuer", ()))
    certificate.serial = shown.get("serialNumber", "").lower()
    return certificate


def name_text(name: Any) -> str:
    """A distinguished name as text, the most special part first (RFC 4514 section 2)."""
    parts = []
    for part in reversed(name):
        pairs = [f"{SHORT_NAMES.get(kind, kind)}={escape_name(value)}" for kind, value in part]
        parts.append("+".join(pairs))
    return ",".join(parts)
