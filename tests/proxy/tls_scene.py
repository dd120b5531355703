"""Certificates and clients for the tests of TLS: everything is made by trustme, once for a test run."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path
from typing import Any

import trustme
from proxy_scene import config

from l7lb.testing import Node
from l7lb.testing.tls import TlsWire


@functools.cache
def authority(name: str = "one") -> trustme.CA:
    """A certificate authority."""
    return trustme.CA(organization_name=f"Authority {name}", key_type=trustme.KeyType.ECDSA)


@functools.cache
def issued(*names: str, ca: str = "one", rsa: bool = False) -> trustme.LeafCert:
    """A certificate for these names."""
    kind = trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA
    return authority(ca).issue_cert(*names, key_type=kind, common_name=names[0])


def write(folder: Path, label: str, certificate: trustme.LeafCert) -> dict[str, str]:
    """A certificate's section of the configuration, with its files."""
    chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
    (folder / f"{label}.pem").write_bytes(chain)
    (folder / f"{label}.key").write_bytes(certificate.private_key_pem.bytes())
    return {"cert": str(folder / f"{label}.pem"), "key": str(folder / f"{label}.key")}


def write_ca(folder: Path, name: str = "one") -> str:
    """The path of an authority's certificate."""
    path = folder / f"ca-{name}.pem"
    path.write_bytes(authority(name).cert_pem.bytes())
    return str(path)


def tls_config(folder: Path, tls: dict[str, Any] | None = None, **pool: Any) -> dict[str, Any]:
    """A node with one TLS listener."""
    section = {"certificates": [write(folder, "example.com", issued("example.com", "www.example.com"))], **(tls or {})}
    return config({"tls": section}, **pool)


def client_context(ca: str = "one", version: str = "", certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """A client that trusts an authority and speaks one version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    authority(ca).configure_trust(context)
    if version:
        context.minimum_version = context.maximum_version = {
            "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3,
        }[version]  # fmt: skip
    if certificate is not None:
        certificate.configure_cert(context)
    return context


async def dial(node: Node, name: str = "example.com", listener: str = "", cut: int = 0, **values: Any) -> TlsWire:
    """A client's connection with its handshake done."""
    context = values.pop("context", None) or client_context()
    wire = await node.connect(listener)
    try:
        return await TlsWire.over(wire, context, server_hostname=name, cut=cut, **values)
    except BaseException:
        wire.close()
        raise
