"""Certificates, keys and what belongs to them: read from their files and judged, at the start and when they change.

Everything that can be wrong with a pair is found here, before a worker gets it: a file that is missing or holds
something else, a key of another certificate, a chain in the wrong order, a certificate that is out of date.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509 import ocsp

from l7lb.config import files
from l7lb.core import pem
from l7lb.core.snapshot import KeyPair

LARGEST = 1024 * 1024  # bytes of a file
CHAIN = 16  # certificates of a chain

ALGORITHMS: tuple[tuple[type, str], ...] = (
    (rsa.RSAPrivateKey, "rsa"),
    (ec.EllipticCurvePrivateKey, "ecdsa"),
    (ed25519.Ed25519PrivateKey, "ed25519"),
    (ed448.Ed448PrivateKey, "ed448"),
)


class Unusable(ValueError):
    """A file that can't be used; ``file`` is the one, the text says what is wrong with it."""

    def __init__(self, file: str, message: str) -> None:
        super().__init__(message)
        self.file = file


@dataclass(frozen=True)
class Read:
    """A pair that works; ``doubts`` is what an operator should look at all the same."""

    pair: KeyPair
    doubts: tuple[str, ...] = ()


def read_pair(certificate_file: str, key_file: str, ocsp_file: str = "", now: datetime | None = None) -> Read:
    """The certificate, its chain, its key and perhaps its OCSP response. Raises Unusable."""
    certificate = read_file(certificate_file)
    chain = _parse_chain(certificate_file, certificate)
    key_text = read_file(key_file)
    key = _parse_key(key_file, key_text)
    if _public(key) != _public(chain[0]):
        place = next((number for number, one in enumerate(chain, 1) if _public(one) == _public(key)), 0)
        if place:
            raise Unusable(certificate_file, f"the key's own certificate is number {place} of the file: put it first")
        raise Unusable(key_file, f"is not the key of the certificate for {_subject(chain[0])}")
    response = read_file(ocsp_file) if ocsp_file else b""
    doubts = [*_order(chain), *_dates(chain, now or datetime.now(UTC))]
    if response:
        found = _judge_response(ocsp_file, response, chain[0], now or datetime.now(UTC))
        response = b"" if found else response
        doubts += found
    pair = KeyPair(
        certificate_file=certificate_file,
        key_file=key_file,
        ocsp_file=ocsp_file,
        certificate=certificate,
        key=key_text,
        ocsp=response,
        names=names(chain[0]),
        algorithm=next(name for kind, name in ALGORITHMS if isinstance(key, kind)),
        expires=chain[0].not_valid_after_utc.timestamp(),
    )
    _try(pair)
    if not pair.names:
        doubts.append("the certificate is for no DNS name (subject alternative name), so that no client accepts it")
    return Read(pair, tuple(doubts))


def read_ca(file: str, now: datetime | None = None) -> tuple[bytes, tuple[str, ...]]:
    """Certificates that others are verified by, and what is doubtful. Raises Unusable."""
    content = read_file(file)
    found = _certificates(file, content)
    return content, tuple(_dates(found, now or datetime.now(UTC)))


def read_file(file: str) -> bytes:
    """A file's bytes, at most LARGEST. Raises Unusable."""
    try:
        return files.read_file(file, LARGEST)
    except files.Unreadable as problem:
        raise Unusable(file, str(problem)) from None


def names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses that a certificate is for, in lower case; wildcards as they are."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    hosts = [str(name).lower() for name in found.get_values_for_type(x509.DNSName)]
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return tuple(dict.fromkeys(hosts + addresses))


# --- inside -------------------------------------------------------------------------------------------------------


def _certificates(file: str, content: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN CERTIFICATE-----" not in content:
        hint = (
            "it is DER: convert it by openssl x509 -inform der" if content[:1] == b"\x30" else "no certificate in PEM"
        )
        raise Unusable(file, f"holds {hint}" if hint.startswith("no") else hint)
    try:
        found = x509.load_pem_x509_certificates(content)
        for one in found:
            one.public_key()
            names(one)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Unusable(file, f"holds a certificate that can't be read: {_first_line(error)}") from None
    return found


def _parse_chain(file: str, content: bytes) -> list[x509.Certificate]:
    found = _certificates(file, content)
    if len(found) > CHAIN:
        raise Unusable(file, f"holds {len(found)} certificates; a chain has at most {CHAIN}")
    return found


def _parse_key(file: str, content: bytes) -> serialization.PrivateFormat:  # any private key
    if b"PRIVATE KEY-----" not in content:
        raise Unusable(file, "holds no private key in PEM")
    try:
        key = serialization.load_pem_private_key(content, None)
    except TypeError:
        raise Unusable(file, "the key is encrypted: a node that starts by itself needs it without a password") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Unusable(file, f"holds a key that can't be read: {_first_line(error)}") from None
    if not any(isinstance(key, kind) for kind, _ in ALGORITHMS):
        raise Unusable(file, "holds a key of a kind that TLS does not use: rsa, ecdsa or ed25519")
    return key  # type: ignore[return-value]


def _public(holder: object) -> bytes:
    key = holder.public_key()  # type: ignore[attr-defined]
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _order(chain: list[x509.Certificate]) -> list[str]:
    """Whether each certificate was issued by the next one, which TLS 1.2 asks for."""
    for place, (one, issuer) in enumerate(pairwise(chain), 1):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return [f"the chain is in the wrong order or incomplete: number {place + 1} did not issue number {place}"]
    return []


def _dates(chain: list[x509.Certificate], now: datetime) -> list[str]:
    found = []
    for one in chain:
        if one.not_valid_after_utc < now:
            found.append(f"the certificate for {_subject(one)} has expired: {one.not_valid_after_utc:%Y-%m-%d %H:%M}")
        elif one.not_valid_before_utc > now:
            found.append(f"the certificate for {_subject(one)} is not valid before {one.not_valid_before_utc:%Y-%m-%d}")
    return found


def _judge_response(file: str, content: bytes, certificate: x509.Certificate, now: datetime) -> list[str]:
    """What is doubtful about an OCSP response. Raises Unusable for one that is none."""
    try:
        response = ocsp.load_der_ocsp_response(content)
        if response.response_status != ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise Unusable(file, "is an OCSP response that says the responder failed")
        serial, status, until = response.serial_number, response.certificate_status, response.next_update_utc
    except ValueError as error:
        if isinstance(error, Unusable):
            raise
        raise Unusable(file, f"is no OCSP response in DER: {_first_line(error)}") from None
    if serial != certificate.serial_number:
        # So it is for a while after each renewal, which must not wait for the responder.
        return ["the OCSP response is of another certificate, and is not sent"]
    if status != ocsp.OCSPCertStatus.GOOD:
        return ["the OCSP response says that the certificate is not good, and is not sent"]
    if until is not None and until < now:
        return [f"the OCSP response is out of date since {until:%Y-%m-%d %H:%M} and is not sent"]
    return []


def _try(pair: KeyPair) -> None:
    """Have OpenSSL take it, as the workers will. Raises Unusable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        with pem.in_file(pair.certificate) as certificate, pem.in_file(pair.key) as key:
            context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise Unusable(pair.certificate_file, f"OpenSSL does not take it: {error}") from None


def _subject(certificate: x509.Certificate) -> str:
    """A short name for a certificate."""
    found = names(certificate)
    return found[0] if found else certificate.subject.rfc4514_string()[:100] or "nobody"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
