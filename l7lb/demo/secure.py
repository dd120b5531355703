"""The demo's part about TLS: certificates for it, clients that look at what their handshake showed, and what is told.

Each certificate is its own authority and lasts a day: for this demo and nothing else.
"""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import shutil
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from l7lb.demo.clients import SECONDS
from l7lb.demo.cluster import Cluster, expect
from l7lb.demo.screen import Screen

READ_BYTES = 64 * 1024
SHOP, API, BANK = "shop.example.com", "api.example.com", "bank.example.com"
BANKS = ("bank1", "bank2")


def make_certificates(directory: Path) -> None:
    """Those of the node and of the bank, whose servers share one."""
    make_certificate(directory, "shop", [SHOP, API])
    make_certificate(directory, BANKS[0], [BANK])
    for ending in ("pem", "key"):
        shutil.copy(directory / f"{BANKS[0]}.{ending}", directory / f"{BANKS[1]}.{ending}")


def make_certificate(directory: Path, name: str, hosts: Sequence[str]) -> None:
    """Write NAME.pem and NAME.key for these hosts and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"l7lb demo {name}")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = directory / f"{name}.key"
    file.touch(mode=0o600)
    file.write_bytes(secret)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class Visit(NamedTuple):
    """What a client saw over one connection; ``servers`` are those that answered, in their order."""

    servers: list[str]
    body: str
    version: str
    resumed: bool
    session: ssl.SSLSession | None


class Client:
    """Opens verified connections to one host; ``highest`` is the newest version of TLS that it speaks."""

    def __init__(self, address: str, host: str, certificate: Path, highest: ssl.TLSVersion, protocol: str) -> None:
        name, _, port = address.rpartition(":")
        self._address = (name, int(port))
        self._host = host
        self._context = ssl.create_default_context(cafile=str(certificate))
        self._context.maximum_version = highest
        self._context.set_alpn_protocols([protocol])
        self._protocol = protocol

    def visit(self, paths: Sequence[str], session: ssl.SSLSession | None = None) -> Visit:
        """Ask for these paths over a new connection. Raises OSError or HTTPException."""
        with (
            socket.create_connection(self._address, SECONDS) as plain,
            self._context.wrap_socket(plain, server_hostname=self._host, session=session) as sock,
        ):
            if self._protocol == "h2":
                servers, body = self._streams(sock, paths)
            else:
                servers, body = self._requests(sock, paths)
            return Visit(servers, body, sock.version() or "", bool(sock.session_reused), sock.session)

    def _requests(self, sock: ssl.SSLSocket, paths: Sequence[str]) -> tuple[list[str], str]:
        """One after the other, in HTTP/1.1."""
        connection = http.client.HTTPConnection(self._host)
        connection.sock = sock
        servers, body = [], b""
        for path in paths:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            servers.append(response.getheader("X-Server", ""))
        return servers, body.decode()

    def _streams(self, sock: ssl.SSLSocket, paths: Sequence[str]) -> tuple[list[str], str]:
        """All at once, as streams of HTTP/2."""
        if sock.selected_alpn_protocol() != "h2":
            raise http.client.UnknownProtocol(sock.selected_alpn_protocol() or "no protocol was agreed on")
        connection = h2.connection.H2Connection(h2.config.H2Configuration())
        connection.initiate_connection()
        for path in paths:
            head = [(":method", "GET"), (":scheme", "https"), (":authority", self._host), (":path", path)]
            connection.send_headers(connection.get_next_available_stream_id(), head, end_stream=True)
        servers: dict[int, str] = {}
        body, ended = b"", 0
        while ended < len(paths):
            sock.sendall(connection.data_to_send())
            data = sock.recv(READ_BYTES)
            if not data:
                raise http.client.RemoteDisconnected(f"{ended} of {len(paths)} streams were answered")
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    servers[event.stream_id] = dict(event.headers).get(b"x-server", b"").decode()
                elif isinstance(event, h2.events.DataReceived):
                    body = event.data
                elif isinstance(event, h2.events.StreamEnded):
                    ended += 1
        return [servers[stream] for stream in sorted(servers)], body.decode()


def ended_here(screen: Screen, cluster: Cluster) -> None:
    """HTTP/1.1 and HTTP/2 over TLS that the node ends. Raises Unexpected."""
    address, file = cluster.listeners["https"], cluster.directory / "shop.pem"
    client = Client(address, SHOP, file, ssl.TLSVersion.TLSv1_2, "http/1.1")
    first = client.visit(["/"])
    expect("x-forwarded-proto: https" in first.body, f"the server was not told of https: {first.body!r}")
    screen.good(f"https://{SHOP}/ is verified, and answered by {first.servers[0]}, which is told that it was https")
    resumed = [client.visit(["/"], first.session).resumed for _ in range(8)]
    expect(all(resumed), f"{resumed.count(False)} of 8 connections did not resume their TLS session")
    screen.good("8 more connections resume its TLS session, whichever worker they meet")
    paths = [f"/orders/{number}" for number in range(20)]
    streams = Client(address, API, file, ssl.TLSVersion.TLSv1_3, "h2").visit(paths)
    names = sorted(set(streams.servers))
    expect(names == ["api1", "api2"], f"20 streams went to {', '.join(names)}")
    screen.good(
        f"20 streams of one HTTP/2 connection ({streams.version}) went to {' and '.join(names)}, by their paths"
    )


def passed_through(screen: Screen, cluster: Cluster) -> None:
    """TLS that the node can't read: its name leads to a pool, its session back to the server. Raises Unexpected."""
    client = Client(
        cluster.listeners["passthrough"],
        BANK,
        cluster.directory / f"{BANKS[0]}.pem",
        ssl.TLSVersion.TLSv1_2,
        "http/1.1",
    )
    for _ in BANKS:
        known = client.visit(["/"])
        for _ in range(4):
            back = client.visit(["/"], known.session)
            same = back.servers == known.servers and back.resumed
            expect(same, f"a session of {known.servers[0]} was not resumed there, but led to {back.servers[0]}")
    screen.good(f"{BANK} is passed through: the certificate that its clients verify is the bank's own")
    screen.good("a client that resumes a TLS session comes back to the bank's server that knows it")
