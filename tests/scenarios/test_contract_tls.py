"""The TLS cluster as its operator would write it (tests/config/tls.yaml): each listener does what the file says, with real
servers and clients. Only the ports are others.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from node_process import NodeProcess, free_port, wait_for
from scenario_node import find

pytestmark = pytest.mark.scenario

FILE = Path(__file__).parents[1] / "config" / "tls.yaml"
PORTS = {8080, 8443, 9443, 9444, 9001, 9002, 9101, 9102}
CERTIFICATES = {
    "example.com": ["example.com"],
    "example.org": ["example.org", "*.example.org"],
    "web2": ["web2.example.com"],
    "bank": ["bank.example.com", "*.example.net"],
}
SERVERS = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port[9001]} proxy_protocol;
        return 200 "web1 $proxy_protocol_addr $http_x_forwarded_proto\\n";
    }}
    server {{
        listen 127.0.0.1:{port[9002]} ssl;
        ssl_certificate {certs}/web2.pem;
        ssl_certificate_key {certs}/web2.key;
        return 200 "web2 $http_x_forwarded_for $http_x_forwarded_proto\\n";
    }}
    {banks}
}}
"""
BANK = """
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certs}/bank.pem;
        ssl_certificate_key {certs}/bank.key;
        ssl_session_cache shared:{name}:1m;
        return 200 "{name} $ssl_server_name $ssl_session_reused\\n";
    }}
"""


class ContractNode(NodeProcess):
    """The contract's file with free ports."""

    def __init__(self, folder: Path, ports: dict[int, int]) -> None:
        self.ports = ports
        super().__init__(folder)

    def write(self, **values: Any) -> None:
        def other(found: re.Match[str]) -> str:
            return f"127.0.0.1:{self.ports[int(found[1])]}"

        self.file.write_text(re.sub(r"127\.0\.0\.1:(\d+)", other, FILE.read_text()))


class Cluster:
    """Certificates next to the file, the four servers, and the node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: free_port() for port in PORTS}
        self.certs = folder / "certs"
        self.certs.mkdir()
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        authority.cert_pem.write_to_path(self.certs / "ca.pem")
        for name, hosts in CERTIFICATES.items():
            leaf = authority.issue_cert(*hosts, key_type=trustme.KeyType.ECDSA)
            stem = f"{name}.com" if name == "example" else name
            (self.certs / f"{stem}.key").write_bytes(leaf.private_key_pem.bytes())
            (self.certs / f"{stem}.pem").write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        self.node = ContractNode(folder, self.ports)

    def servers(self) -> subprocess.Popen[bytes]:
        """Start nginx with all four."""
        banks = "".join(
            BANK.format(port=self.ports[number], certs=self.certs, name=name)
            for name, number in (("bank1", 9101), ("bank2", 9102))
        )
        text = SERVERS.format(folder=self.folder, certs=self.certs, port=self.ports, banks=banks)
        (self.folder / "nginx.conf").write_text(text)
        program = find("nginx")
        assert program
        with (self.folder / "nginx.log").open("wb") as log:
            command = [program, "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self._listens(9102), f"nginx:\n{(self.folder / 'nginx.log').read_text()}")
        return process

    def _listens(self, port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.ports[port]), 1.0).close()
        except OSError:
            return False
        return True

    def curl(self, host: str, port: int, *words: str, path: str = "/", scheme: str = "https") -> str:
        """curl's output for that host at the node's listener."""
        real = self.ports[port]
        done = subprocess.run(
            ["curl", "-sS", "--cacert", str(self.certs / "ca.pem"), "--resolve", f"{host}:{real}:127.0.0.1",
             "--max-time", "20", *words, f"{scheme}://{host}:{real}{path}"],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.node.output()
        return done.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if find("nginx") is None or find("curl") is None:
        pytest.skip("nginx or curl is not installed")
    made = Cluster(tmp_path_factory.mktemp("tls"))
    servers = made.servers()
    try:
        with made.node:
            yield made
    finally:
        servers.terminate()
        servers.wait(10)


def test_the_file_is_accepted_as_it_stands(cluster: Cluster) -> None:
    assert "warning" not in cluster.node.output().lower()


def test_plain_http_is_sent_to_https(cluster: Cluster) -> None:
    head = cluster.curl("example.com", 8080, "-I", path="/a?b=c", scheme="http")
    assert head.startswith("HTTP/1.1 301 ")
    assert "location: https://example.com/a?b=c\n" in head.lower()


@pytest.mark.parametrize("host", ["example.com", "www.example.org"])
@pytest.mark.parametrize("version", ["--http2", "--http1.1"])
def test_https_goes_by_its_host_over_both_versions(cluster: Cluster, host: str, version: str) -> None:
    answers = [
        cluster.curl(host, 8443, version, "-w", "%{http_version}").split() for _ in range(6)
    ]  # the handshake verified the certificate of that name
    assert {answer[0] for answer in answers} == {"web1", "web2"}
    assert {answer[1] for answer in answers} == {"127.0.0.1"}
    assert {answer[2] for answer in answers} == {"https"}
    assert {answer[3] for answer in answers} == {"2" if version == "--http2" else "1.1"}


def test_a_host_without_a_rule_is_not_found(cluster: Cluster) -> None:
    head = cluster.curl("example.com", 8443, "-I", "-H", "Host: elsewhere.example.net")
    assert re.match(r"HTTP/(2|1\.1) 404", head)


def test_tls_1_1_is_refused(cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.certs / "ca.pem"))
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", cluster.ports[8443]), 10) as sock,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(sock, server_hostname="example.com")


def _listed(cluster: Cluster, first: bytes) -> bytes:
    """What a peer that is listed for PROXY gets, who begins with these bytes and then TLS."""
    context = ssl.create_default_context(cafile=str(cluster.certs / "ca.pem"))
    address = ("127.0.0.1", cluster.ports[8443])
    with socket.create_connection(address, 20, source_address=("127.0.0.2", 0)) as sock:
        sock.sendall(first)
        with context.wrap_socket(sock, server_hostname="example.com") as secured:
            secured.sendall(b"GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := secured.recv(65536):
                answer += part
    return answer


def test_a_listed_peer_tells_the_clients_address(cluster: Cluster) -> None:
    header = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"
    answers = [_listed(cluster, header) for _ in range(2)]
    assert all(
        b" 203.0.113.7 https\n" in answer for answer in answers
    )  # by PROXY v2 to web1, by X-Forwarded-For to web2


def _refused(cluster: Cluster, source: str, first: bytes) -> None:
    """Who begins with these bytes is closed without a handshake."""
    address = ("127.0.0.1", cluster.ports[8443])
    with socket.create_connection(address, 20, source_address=(source, 0)) as sock:
        answer = b""
        try:
            sock.sendall(first)
            while part := sock.recv(65536):
                answer += part
        except ConnectionError:
            pass  # so it was
    assert not answer.startswith(b"\x16\x03")


def _hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_listed_peer_must_send_the_header(cluster: Cluster) -> None:
    _refused(cluster, "127.0.0.2", _hello())


def test_nobody_else_may_send_the_header(cluster: Cluster) -> None:
    _refused(cluster, "127.0.0.1", b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n" + _hello())


def test_what_is_passed_through_goes_to_a_bank(cluster: Cluster) -> None:
    for host in ("bank.example.com", "www.example.net"):
        answer = cluster.curl(host, 9443).split()
        assert answer[0] in ("bank1", "bank2")
        assert answer[1] == host


def test_a_session_resumes_at_the_server_that_issued_it(cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.certs / "ca.pem"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    sources = (f"127.0.{third}.{fourth}" for third in range(1, 250) for fourth in range(1, 250))

    def ask(session: ssl.SSLSession | None = None) -> tuple[list[bytes], ssl.SSLSession | None]:
        """From an address that nobody had before, so that only the session can tell."""
        address = ("127.0.0.1", cluster.ports[9443])
        with (
            socket.create_connection(address, 20, source_address=(next(sources), 0)) as sock,
            context.wrap_socket(sock, server_hostname="bank.example.com", session=session) as secured,
        ):
            secured.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while part := secured.recv(65536):
                answer += part
            return answer.rpartition(b"\r\n\r\n")[2].split(), secured.session

    for _ in range(6):
        (name, *_), session = ask()
        # The other worker hears of the session within some milliseconds.
        wait_for(lambda: ask(session)[0] == [name, b"bank.example.com", b"r"], "the session to lead back")  # noqa: B023
        assert all(ask(session)[0] == [name, b"bank.example.com", b"r"] for _ in range(6))


def test_plain_tcp_passes_anything(cluster: Cluster) -> None:
    assert cluster.curl("bank.example.com", 9444).split()[0] in ("bank1", "bank2")


def test_resumption_at_any_worker(cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.certs / "ca.pem"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session: ssl.SSLSession | None = None
    for number in range(12):  # the kernel spreads them over the workers
        with (
            socket.create_connection(("127.0.0.1", cluster.ports[8443]), 20) as sock,
            context.wrap_socket(sock, server_hostname="example.com", session=session) as secured,
        ):
            assert secured.session_reused is (number > 0)
            session = session or secured.session
