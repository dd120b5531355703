"""TLS: how a listener ends it, and how servers are spoken to over it.

The files are read with the configuration, while it is sure that they can be read, and their content goes into the
snapshot. :mod:`l7lb.control.certificates` reads them again when they change.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from l7lb.config.certificates import Unusable, read_ca, read_pair
from l7lb.config.fields import FilePath, ProtocolName, TlsName
from l7lb.config.section import Reading, Section
from l7lb.core.snapshot import KeyPair, ListenerTls, ServerTls

Version = Literal["1.2", "1.3"]


class Files(Section):
    """A certificate with its key."""

    cert: FilePath = Field(description="The certificate's file (PEM): the own one first, then those that issued it.")
    key: FilePath = Field(description="Its key's file (PEM, without a password).")

    _pair: KeyPair | None = PrivateAttr(default=None)

    def check(self, reading: Reading) -> None:
        self._take_files(reading, "")

    def _take_files(self, reading: Reading, ocsp_file: str) -> None:
        files = {"cert": str(reading.base / self.cert), "key": str(reading.base / self.key)}
        if ocsp_file:
            files["ocsp"] = str(reading.base / ocsp_file)
        try:
            found = read_pair(files["cert"], files["key"], files.get("ocsp", ""))
        except Unusable as error:
            where = next((name for name, path in files.items() if path == error.file), "cert")
            written = {"cert": self.cert, "key": self.key, "ocsp": ocsp_file}[where]
            self.complain(reading, about(written, error), where)
            return
        self._pair = found.pair
        for doubt in found.doubts:
            reading.warning((*self.place, "cert"), doubt)

    def compiled(self) -> KeyPair:
        """The pair with its content; only for a section without problems."""
        assert self._pair is not None
        return self._pair


class Certificate(Files):
    """A certificate of a listener."""

    ocsp: FilePath | None = Field(
        default=None, description="A file with the responder's answer (DER) that clients are given with it."
    )

    def check(self, reading: Reading) -> None:
        self._take_files(reading, self.ocsp or "")


class Tls(Section):
    """TLS that ends at a listener."""

    certificates: Annotated[list[Certificate], Field(min_length=1)] = Field(
        description="The certificates: the name that a client asks for picks one, the first is for all other names. "
        "The files are read again when they change."
    )
    min_version: Version = Field(default="1.2", description="The oldest version that is spoken.")
    max_version: Version = Field(default="1.3", description="The newest.")
    ciphers: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None,
        description="Ciphers of TLS 1.2 in OpenSSL's words and in their order; default: those with forward secrecy and "
        "authenticated encryption. TLS 1.3 has only such.",
    )
    alpn: Annotated[list[ProtocolName], Field(min_length=1, max_length=16)] | None = Field(
        default=None,
        description="The protocols that are offered, the preferred one first; default: all that the listener speaks.",
    )
    client_ca: FilePath | None = Field(
        default=None, description="Clients must show a certificate that these (PEM) issued: mutual TLS."
    )
    client_certificate: Literal["required", "optional"] = Field(
        default="required", description="With client_ca: whether a client without a certificate is refused."
    )
    session_tickets: Literal["shared", "off"] = Field(
        default="shared",
        description="shared: a client resumes at any worker by a ticket, whose key changes by itself; off: never.",
    )

    _client_ca: bytes = PrivateAttr(default=b"")

    def check(self, reading: Reading) -> None:
        if self.min_version > self.max_version:
            self.complain(reading, f"{self.max_version} is older than min_version {self.min_version}", "max_version")
        if self.ciphers is not None:
            self._check_ciphers(reading, self.ciphers)
        if self.client_ca is not None:
            self._client_ca = take_ca(self, self.client_ca, "client_ca", reading)
        elif self.client_certificate == "optional":
            reading.warning((*self.place, "client_certificate"), "has no effect without client_ca")
        seen: dict[tuple[str, str], int] = {}
        for number, certificate in enumerate(self.certificates, 1):
            pair = certificate._pair
            for name in pair.names if pair is not None else ():
                first = seen.setdefault((name, pair.algorithm), number) if pair is not None else number
                if first != number:
                    message = f"certificate {first} is for {name} with a key of the same kind: that one is used"
                    reading.warning((*certificate.place, "cert"), message)
                    break

    def _check_ciphers(self, reading: Reading, ciphers: list[str]) -> None:
        for number, cipher in enumerate(ciphers):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                if ":" in cipher or not cipher:
                    raise ssl.SSLError
                context.set_ciphers(cipher)
            except ssl.SSLError:
                self.complain(
                    reading, f"OpenSSL knows no cipher {cipher!r}: see `openssl ciphers -v`", "ciphers", number
                )
                continue
            found = [one for one in context.get_ciphers() if one["protocol"] != "TLSv1.3"]
            weak = [one["name"] for one in found if not one["aead"] or one["kea"] not in ("kx-ecdhe", "kx-dhe")]
            if weak:
                message = f"{weak[0]} lacks forward secrecy or authenticated encryption"
                reading.warning((*self.place, "ciphers", number), message)

    def compiled(self, reading: Reading, alpn: tuple[str, ...]) -> ListenerTls:
        """For the data path; ``alpn`` is what the listener's protocol speaks: no more than that is ever offered."""
        return ListenerTls(
            certificates=tuple(certificate.compiled() for certificate in self.certificates),
            min_version=self.min_version,
            max_version=self.max_version,
            ciphers=":".join(self.ciphers or ()),
            alpn=tuple(name for name in self.alpn if name in alpn) if self.alpn is not None else alpn,
            client_ca_file=str(reading.base / self.client_ca) if self.client_ca is not None else "",
            client_ca=self._client_ca,
            client_certificate=self.client_certificate if self.client_ca is not None else "",
            session_tickets=self.session_tickets == "shared",
        )


class ToServer(Section):
    """TLS to a server."""

    ca: FilePath | None = Field(
        default=None, description="Its certificate must be issued by these (PEM); default: the system's."
    )
    server_name: TlsName | None = Field(
        default=None, description="The name that it must prove to have; default: the host of its address."
    )
    verify: bool = Field(default=True, description="Whether its certificate and name are verified.")
    certificate: Files | None = Field(default=None, description="What l7lb shows where the server asks for it.")
    alpn: Annotated[list[ProtocolName], Field(min_length=1, max_length=16)] | None = Field(
        default=None, description="The protocols that are offered; default: none, which means HTTP/1.1."
    )
    min_version: Version = Field(default="1.2", description="The oldest version that is spoken.")
    mode: Literal["implicit", "starttls", "auto"] | None = Field(
        default=None,
        description="When TLS begins: implicit, with the first byte; starttls, when l7lb asks for it; auto, as the "
        "server does it. default: auto for mail, implicit for all else.",
    )

    _ca: bytes = PrivateAttr(default=b"")

    def check(self, reading: Reading) -> None:
        if self.ca is not None:
            self._ca = take_ca(self, self.ca, "ca", reading)
            if not self.verify:
                reading.warning((*self.place, "ca"), "has no effect with verify: false")
        if not self.verify:
            reading.warning((*self.place, "verify"), "anybody who is in between can read and change what is sent")

    def compiled(self, host: str, base: Path, mode: str) -> ServerTls:
        """For the data path; ``host`` is that of the server's address, "" for a unix socket; ``mode`` is used where
        none is given.
        """
        return ServerTls(
            server_name=self.server_name or host,
            ca_file=str(base / self.ca) if self.ca is not None else "",
            ca=self._ca,
            verify=self.verify,
            certificate=self.certificate.compiled() if self.certificate is not None else None,
            alpn=tuple(self.alpn or ()),
            min_version=self.min_version,
            mode=self.mode or mode,
        )


def about(written: str, error: Unusable) -> str:
    """What is wrong with a file, by its path as written, and in whole where that is relative and nothing is there."""
    missing = f" ({error.file})" if not os.path.isabs(written) and not os.path.lexists(error.file) else ""
    return f"{written}: {error}{missing}"


def take_ca(section: Section, file: str, key: str, reading: Reading) -> bytes:
    """Certificates that others are verified by (PEM); what is wrong with them is reported, and b"" returned."""
    try:
        content, doubts = read_ca(str(reading.base / file))
    except Unusable as error:
        section.complain(reading, about(file, error), key)
        return b""
    for doubt in doubts:
        reading.warning((*section.place, key), doubt)
    return content
