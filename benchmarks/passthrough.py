"""TLS passed through, beside HAProxy in mode tcp: both read the ClientHello and choose by its name.

nginx is the server, with an ECDSA P-256 certificate; wrk is the client, and makes a full handshake for each connection.

Bulk is measured twice. Over TLS the server's encryption sets the pace, and bytes come in small pieces, so that wake-ups
cost more than copies: there even HAProxy's own splicing saves it little. In the clear, through ``protocol: tcp``, they
come as fast as they are taken.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.peers import LARGE, SMALL, Site, find, nginx_command, nginx_text
from benchmarks.processes import BenchmarkError, Group, free_port

NAME = "localhost"  # what wrk asks for, since it takes the name from the URL


@dataclass
class SecureGroup(Group):
    """A program that is there once it answers a handshake. ``plain`` is its port for bytes in the clear."""

    plain: int = 0

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            text = (self.folder / f"{self.name}.log").read_text(errors="replace")
            raise BenchmarkError(f"{self.name} ended with {self.process.returncode}:\n{text[-2000:]}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), 1.0) as sock,
                context.wrap_socket(sock, server_hostname=NAME),
            ):
                return True
        except OSError:
            return False


def server(site: Site) -> SecureGroup:
    """nginx with TLS: a small answer everywhere, a large file below /large."""
    folder = site.folder / "secure"
    folder.mkdir(exist_ok=True)
    port = free_port()
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    made += ["-subj", "/CN=localhost", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([find("openssl"), *made], check=True, capture_output=True)
    blocks = f"""
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/key.pem;
        ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256;
        location / {{ default_type text/plain; return 200 "{"x" * SMALL}"; }}
        location /large {{ root {site.folder}/root; }}
    }}"""
    text = nginx_text(folder, "sendfile on; tcp_nopush on;", blocks)
    return SecureGroup("secure", nginx_command(folder, text), site.cores.servers, site.folder, port)


def haproxy(site: Site, behind: int, name: str = "haproxy", options: str = "") -> SecureGroup:
    """HAProxy with one thread, routing by SNI."""
    port, plain = free_port(), free_port()
    path = site.folder / f"{name}-tcp.cfg"
    path.write_text(f"""
global
    nbthread 1
    maxconn 12000
    no strict-limits
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    {options}
frontend secure
    bind 127.0.0.1:{port} backlog 4096
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req_ssl_hello_type 1 }}
    use_backend other if {{ req_ssl_sni -i www.example.com }}
    use_backend bank if {{ req_ssl_sni -i {NAME} }}
backend bank
    server bank1 127.0.0.1:{behind}
backend other
    server other1 127.0.0.1:{behind}
listen plain
    bind 127.0.0.1:{plain} backlog 4096
    server plain1 127.0.0.1:{site.servers[0]}
""")
    command = [find("haproxy"), "-db", "-f", str(path)]
    return SecureGroup(name, command, site.cores.measured, site.folder, port, plain=plain)


def l7lb(site: Site, behind: int, bare: bool) -> SecureGroup:
    """l7lb with one worker and the same rules."""
    port, plain = free_port(), free_port()
    folder = site.folder / "l7lb-passthrough"
    folder.mkdir(exist_ok=True)
    path = folder / "l7lb.yaml"
    path.write_text(f"""
node: benchmark
workers: 1
admin: {{socket: run/admin.sock}}
listeners:
  - name: secure
    protocol: tls-passthrough
    bind: ["127.0.0.1:{port}"]
    routes:
      - {{match: {{sni: www.example.com}}, pool: other}}
      - {{match: {{sni: {NAME}}}, pool: bank}}
  - {{name: plain, protocol: tcp, bind: ["127.0.0.1:{plain}"], routes: [{{pool: plain}}]}}
pools:
  plain: {{servers: [{{name: plain1, address: "127.0.0.1:{site.servers[0]}"}}]}}
  bank: {{servers: [{{name: bank1, address: "127.0.0.1:{behind}"}}]}}
  other: {{servers: [{{name: other1, address: "127.0.0.1:{behind}"}}]}}
""")
    program = (
        [str(Path(__file__).with_name("bare.py")), str(path)]
        if bare
        else ["-m", "l7lb.cli", "serve", "--config", str(path)]
    )
    command = [sys.executable, "-P", *program]
    return SecureGroup("l7lb", command, site.cores.measured, site.folder, port, plain=plain)


@contextlib.contextmanager
def started(site: Site, bare: bool, only: frozenset[str], splice: bool) -> Iterator[list[SecureGroup]]:
    """The server and the peers that are asked for, running."""
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(server(site)).port
        groups = [l7lb(site, behind, bare), haproxy(site, behind)]
        if splice:
            options = "option splice-response\n    option splice-request"
            groups.append(haproxy(site, behind, "haproxy-splice", options))
        groups = [group for group in groups if not only or group.name in only]
        for group in groups:
            stack.enter_context(group)
        yield groups


def bulk(group: SecureGroup, core: int, seconds: float, scheme: str = "https") -> tuple[float, float]:
    """Milliseconds of CPU a GB, and GB a second, of bodies of 10 MB."""
    port = group.port if scheme == "https" else group.plain
    before = group.cpu()
    done = checked(group, load.wrk(port, core, seconds, 8, path="/large", scheme=scheme, address=NAME))
    gigabytes = done.requests * LARGE / 1e9
    return (group.cpu() - before) / gigabytes * 1000, gigabytes / done.seconds


def connections(group: Group, core: int, seconds: float) -> tuple[float, float]:
    """Microseconds of CPU a connection with a handshake and a small answer, and connections a second."""
    before = group.cpu()
    headers = ("Connection: close",)
    done = checked(group, load.wrk(group.port, core, seconds, 20, headers=headers, scheme="https", address=NAME))
    return (group.cpu() - before) / done.requests * 1e6, done.rate


def checked(group: Group, done: load.Load) -> load.Load:
    """Raises BenchmarkError where a request failed."""
    if done.errors or not done.requests:
        raise BenchmarkError(f"{group.name}: {done.errors} of {done.requests} requests failed")
    return done
