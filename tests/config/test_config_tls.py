"""TLS in the configuration: what is read from the files, and everything that can be wrong with them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from l7lb.config import load
from l7lb.core.errors import ConfigurationError
from l7lb.core.snapshot import decode, encode

CA = trustme.CA(key_type=trustme.KeyType.ECDSA)
CHILD = CA.create_child_ca(key_type=trustme.KeyType.ECDSA)
LEAF = CHILD.issue_cert("example.com", "*.example.com", "192.0.2.1", key_type=trustme.KeyType.ECDSA)
OTHER = CHILD.issue_cert("example.org", key_type=trustme.KeyType.RSA)


def write(folder: Path, label: str, leaf: trustme.LeafCert, chain: list[int] | None = None) -> None:
    parts = [part.bytes() for part in leaf.cert_chain_pems]
    order = chain if chain is not None else list(range(len(parts)))
    (folder / f"{label}.pem").write_bytes(b"".join(parts[number] for number in order))
    (folder / f"{label}.key").write_bytes(leaf.private_key_pem.bytes())


def text(tls: str, server: str = "") -> str:
    return f"""
listeners:
  - {{name: web, protocol: http, bind: ["127.0.0.1:80"], routes: [{{pool: web}}], tls: {tls}}}
pools:
  web: {{servers: [{{name: a, address: "app.example.com:443"{server}}}]}}
"""


def read(folder: Path, tls: str, server: str = "") -> Any:
    return load(folder / "l7lb.yaml", text=text(tls, server))


def problems(folder: Path, tls: str, server: str = "") -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(folder, tls, server)
    return [f"{one.path}: {one.message}" for one in caught.value.problems]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "leaf", LEAF)
    write(tmp_path, "other", OTHER)
    (tmp_path / "ca.pem").write_bytes(CA.cert_pem.bytes())
    return tmp_path


PAIR = "certificates: [{cert: leaf.pem, key: leaf.key}]"


def test_what_is_compiled(folder: Path) -> None:
    loaded = read(folder, f"{{{PAIR}, client_ca: ca.pem, ciphers: [ECDHE-ECDSA-AES128-GCM-SHA256]}}")
    assert loaded.warnings == []
    tls = loaded.snapshot.listeners[0].tls
    pair = tls.certificates[0]
    assert pair.names == ("example.com", "*.example.com", "192.0.2.1")
    assert pair.algorithm == "ecdsa"
    assert pair.expires > 1.7e9
    assert pair.certificate == (folder / "leaf.pem").read_bytes()
    assert pair.key == (folder / "leaf.key").read_bytes()
    assert tls.client_ca == CA.cert_pem.bytes()
    assert (tls.client_certificate, tls.min_version, tls.max_version) == ("required", "1.2", "1.3")
    assert tls.ciphers == "ECDHE-ECDSA-AES128-GCM-SHA256"
    assert tls.session_tickets
    assert decode(encode(loaded.snapshot)) == loaded.snapshot
    assert b"PRIVATE KEY" not in repr(loaded.snapshot).encode()


def test_servers(folder: Path) -> None:
    tls = read(folder, f"{{{PAIR}}}", ", tls: {}").snapshot.pools[0].servers[0].tls
    assert (tls.server_name, tls.ca, tls.verify, tls.certificate) == ("app.example.com", b"", True, None)
    section = ", tls: {ca: ca.pem, server_name: Web2.example.com, certificate: {cert: other.pem, key: other.key}}"
    tls = read(folder, f"{{{PAIR}}}", section).snapshot.pools[0].servers[0].tls
    assert tls.server_name == "web2.example.com"
    assert tls.ca == CA.cert_pem.bytes()
    assert tls.certificate.algorithm == "rsa"


def test_doubts_about_servers(folder: Path) -> None:
    loaded = read(folder, f"{{{PAIR}}}", ", tls: {verify: false, ca: ca.pem}")
    assert [one.message for one in loaded.warnings] == [
        "anybody who is in between can read and change what is sent",
        "has no effect with verify: false",
    ]
    unix = text(f"{{{PAIR}}}", ", tls: {}").replace("app.example.com:443", "unix:run/app.sock")
    with pytest.raises(ConfigurationError, match="a unix socket has no name to be verified: give server_name"):
        load(folder / "l7lb.yaml", text=unix)


def test_a_key_of_another_certificate(folder: Path) -> None:
    (found,) = problems(folder, "{certificates: [{cert: leaf.pem, key: other.key}]}")
    assert found == "listeners[0].tls.certificates[0].key: other.key: is not the key of the certificate for example.com"


def test_the_own_certificate_is_not_the_first(folder: Path) -> None:
    write(folder, "leaf", LEAF, [1, 0])
    (found,) = problems(folder, f"{{{PAIR}}}")
    assert "the key's own certificate is number 2 of the file: put it first" in found


def test_a_chain_with_a_gap(folder: Path) -> None:
    (folder / "leaf.pem").write_bytes(LEAF.cert_chain_pems[0].bytes() + CA.cert_pem.bytes())
    (warning,) = read(folder, f"{{{PAIR}}}").warnings
    assert warning.message == "the chain is in the wrong order or incomplete: number 2 did not issue number 1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("leaf.pem", b"", "holds no certificate in PEM"),
        ("leaf.pem", b"0\x82\x01", "it is DER: convert it by openssl x509 -inform der"),
        ("leaf.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "can't be read"),
        ("leaf.pem", b"x" * 1_100_000, "is larger than 1 MiB"),
        ("leaf.key", b"", "holds no private key in PEM"),
        ("leaf.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "can't be read"),
    ],
)
def test_files_that_hold_something_else(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    (found,) = problems(folder, f"{{{PAIR}}}")
    assert message in found


def test_a_key_with_a_password(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (folder / "leaf.key").write_bytes(encrypted)
    (found,) = problems(folder, f"{{{PAIR}}}")
    assert "the key is encrypted" in found


def test_dates(folder: Path) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    write(folder, "leaf", CA.issue_cert("example.com", not_before=past, not_after=past + datetime.timedelta(days=90)))
    (warning,) = read(folder, f"{{{PAIR}}}").warnings
    assert warning.message == "the certificate for example.com has expired: 2020-03-31 00:00"


def test_ciphers_and_versions(folder: Path) -> None:
    found = problems(folder, f"{{{PAIR}, ciphers: [NONSENSE], min_version: '1.3', max_version: '1.2'}}")
    assert "OpenSSL knows no cipher 'NONSENSE'" in found[0] or "OpenSSL knows no cipher 'NONSENSE'" in found[1]
    assert any("1.2 is older than min_version 1.3" in one for one in found)
    (warning,) = read(folder, f"{{{PAIR}, ciphers: [AES128-SHA]}}").warnings
    assert "AES128-SHA lacks forward secrecy or authenticated encryption" in warning.message


def test_what_has_no_effect(folder: Path) -> None:
    messages = [
        one.message
        for one in read(
            folder,
            "{certificates: [{cert: leaf.pem, key: leaf.key}, {cert: leaf.pem, key: leaf.key}], "
            "client_certificate: optional, alpn: [spdy/3, http/1.1]}",
        ).warnings
    ]
    assert any("certificate 1 is for example.com with a key of the same kind" in one for one in messages)
    assert any("has no effect without client_ca" in one for one in messages)
    assert any("spdy/3 is not spoken here and not offered" in one for one in messages)


# --- OCSP ---------------------------------------------------------------------------------------------------------


def response(status: ocsp.OCSPCertStatus, days: int = 7, leaf: trustme.LeafCert = LEAF) -> bytes:
    """A responder's answer, signed by a throw-away CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "responder")])
    issuer = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()),
        issuer=issuer,
        algorithm=hashes.SHA256(),
        cert_status=status,
        this_update=now - datetime.timedelta(days=30),
        next_update=now + datetime.timedelta(days=days),
        revocation_time=now if status is ocsp.OCSPCertStatus.REVOKED else None,
        revocation_reason=None,
    )
    signed = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, issuer).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


WITH_RESPONSE = "{certificates: [{cert: leaf.pem, key: leaf.key, ocsp: leaf.der}]}"


def test_an_ocsp_response(folder: Path) -> None:
    good = response(ocsp.OCSPCertStatus.GOOD)
    (folder / "leaf.der").write_bytes(good)
    loaded = read(folder, WITH_RESPONSE)
    assert loaded.warnings == []
    assert loaded.snapshot.listeners[0].tls.certificates[0].ocsp == good


@pytest.mark.parametrize(
    ("status", "days", "message"),
    [
        (ocsp.OCSPCertStatus.GOOD, -1, "the OCSP response is out of date"),
        (ocsp.OCSPCertStatus.REVOKED, 7, "the OCSP response says that the certificate is not good"),
    ],
)
def test_a_doubtful_ocsp_response_is_not_sent(
    folder: Path, status: ocsp.OCSPCertStatus, days: int, message: str
) -> None:
    (folder / "leaf.der").write_bytes(response(status, days))
    loaded = read(folder, WITH_RESPONSE)
    assert message in loaded.warnings[0].message
    assert loaded.snapshot.listeners[0].tls.certificates[0].ocsp == b""


def test_a_wrong_ocsp_response(folder: Path) -> None:
    (folder / "leaf.der").write_bytes(response(ocsp.OCSPCertStatus.GOOD, leaf=OTHER))
    loaded = read(folder, WITH_RESPONSE)
    assert loaded.warnings[0].message == "the OCSP response is of another certificate, and is not sent"
    assert loaded.snapshot.listeners[0].tls.certificates[0].ocsp == b""
    (folder / "leaf.der").write_bytes(b"nothing of the kind")
    assert "is no OCSP response in DER" in problems(folder, WITH_RESPONSE)[0]
