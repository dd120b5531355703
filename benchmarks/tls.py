"""TLS that ends at the proxy, beside HAProxy: the same certificate (ECDSA P-256), the same ciphers, tickets on both.

The configurations are those of the cases without TLS; only where they listen differs.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import load, peers
from benchmarks.passthrough import NAME, SecureGroup
from benchmarks.peers import LARGE, Site, find
from benchmarks.processes import BenchmarkError, Group

CIPHERS = ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384")  # of TLS 1.2; 1.3 is what is measured


def certificate(site: Site) -> Path:
    """A folder with a self-signed certificate: cert.pem, key.pem, and both.pem for HAProxy."""
    folder = site.folder / "certificate"
    if not folder.exists():
        folder.mkdir()
        made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
        made += ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
        made += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
        subprocess.run([find("openssl"), *made], check=True, capture_output=True)
        (folder / "both.pem").write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return folder


def l7lb(site: Site, bare: bool) -> SecureGroup:
    """l7lb, with X-Forwarded-For as HAProxy adds it."""
    group = peers.l7lb(site, "l7lb-tls", bare=bare, forwarded=peers.PLAIN)
    folder = certificate(site)
    pair = f"certificates: [{{cert: {folder}/cert.pem, key: {folder}/key.pem}}]"
    words = f"    tls: {{{pair}, ciphers: [{', '.join(CIPHERS)}], alpn: [http/1.1]}}\n"
    path = group.folder / "l7lb.yaml"
    path.write_text(path.read_text().replace("    forwarded:", words + "    forwarded:", 1))
    return _secure("l7lb", group)


def haproxy(site: Site) -> SecureGroup:
    """HAProxy, whose tickets and sessions are as they are by default."""
    group = peers.haproxy(site, "haproxy-tls")
    path = site.folder / "haproxy-tls.cfg"
    bind = f"bind 127.0.0.1:{group.port} backlog 4096"
    secure = (
        f"{bind} ssl crt {certificate(site)}/both.pem ciphers {':'.join(CIPHERS)} ssl-min-ver TLSv1.2 alpn http/1.1"
    )
    path.write_text(path.read_text().replace(bind, secure))
    return _secure("haproxy", group)


def _secure(name: str, group: Group) -> SecureGroup:
    return SecureGroup(name, group.command, group.core, group.folder, group.port)


@contextlib.contextmanager
def started(site: Site, bare: bool, only: frozenset[str]) -> Iterator[list[SecureGroup]]:
    """The peers that are asked for, running."""
    with contextlib.ExitStack() as stack:
        groups = [group for group in (l7lb(site, bare), haproxy(site)) if not only or group.name in only]
        for group in groups:
            stack.enter_context(group)
        yield groups


def requests(
    group: Group, core: int, seconds: float, path: str = "/", connections: int = 50, urls: Path | None = None
) -> tuple[float, float]:
    """Microseconds of CPU a request over kept connections, and requests a second."""
    before = group.cpu()
    done = load.wrk(group.port, core, seconds, connections, path=path, scheme="https", address=NAME, urls=urls)
    if done.errors or not done.requests:
        raise BenchmarkError(f"{group.name}: {done.errors} of {done.requests} requests failed")
    return (group.cpu() - before) / done.requests * 1e6, done.rate


def bodies(group: Group, core: int, seconds: float) -> float:
    """Milliseconds of CPU a GB of bodies of 10 MB."""
    return requests(group, core, seconds, "/large", 8)[0] / 1000 / (LARGE / 1e9)


def handshakes(group: Group, core: int, seconds: float, resume: bool) -> tuple[float, float]:
    """Microseconds of CPU a connection with its handshake and a small request, and connections a second."""
    before = group.cpu()
    program = str(Path(__file__).with_name("handshakes.py"))
    words = [sys.executable, "-P", program, str(group.port), str(seconds), "resumed" if resume else "full"]
    done = subprocess.run(
        ["taskset", "-c", str(core), *words], capture_output=True, text=True, timeout=seconds + 30, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{group.name}: {done.stderr}")
    found = json.loads(done.stdout)
    if resume and found["resumed"] < found["count"] - 1:
        raise BenchmarkError(f"{group.name}: only {found['resumed']} of {found['count']} sessions were resumed")
    return (group.cpu() - before) / found["count"] * 1e6, found["count"] / found["seconds"]


def idle_client(group: Group, count: int) -> float:
    """Bytes of memory that one idle client with TLS costs: it has sent one request and read its answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def connect() -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", group.port), 10.0)
        return context.wrap_socket(sock, server_hostname=NAME)

    return load.idle_connections(group, count, connect)
