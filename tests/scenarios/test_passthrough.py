"""TLS passed through to real servers: who resumes a session comes back to the server that issued it."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import trustme
from scenario_node import Nginx, Node, find, free_port, l7lb, wait_for

pytestmark = pytest.mark.scenario

NAME = "bank.example.com"
TEXT = """
state: state
listeners:
  - name: secure
    protocol: tls-passthrough
    bind: ["127.0.0.1:PORT"]
    routes:
      - {match: {sni: "bank.example.com"}, pool: bank}
      - {match: {sni: "*.example.com", alpn: h2}, pool: other}
pools:
  bank:
    persistence: KEYS
    health: {protocol: {}, interval: 100ms, timeout: 2s, rise: 1, fall: 1}
    servers: [{name: one, address: "127.0.0.1:ONE"}, {name: two, address: "127.0.0.1:TWO"}]
  other: {health: {protocol: {}, interval: 100ms, timeout: 2s, rise: 1}, servers: [{name: three, address: "127.0.0.1:TWO"}]}
"""


class Secure(Nginx):
    """nginx that speaks TLS as well, with tickets and a cache of sessions of its own."""

    def __init__(self, folder: Path, name: str, certificate: Path) -> None:
        super().__init__(folder, name)
        self.secure = free_port()
        file = self.folder / "nginx.conf"
        text = file.read_text().replace(
            " backlog=4096;",
            f""" backlog=4096;
        listen 127.0.0.1:{self.secure} ssl http2;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:{name}:1m;
        ssl_session_timeout 1h;""",
            1,
        )
        file.write_text(text)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and its certificate."""
    file = tmp_path / "servers.pem"
    trustme.CA().issue_cert(NAME, "*.example.com").private_key_and_cert_chain_pem.write_to_path(str(file))
    return file


@contextlib.contextmanager
def cluster(folder: Path, certificate: Path, keys: str = "tls_session") -> Iterator[tuple[Node, Secure, Secure]]:
    """Two servers and a node of two workers."""
    with Secure(folder, "one", certificate) as one, Secure(folder, "two", certificate) as two:
        text = TEXT.replace("KEYS", keys).replace("ONE", str(one.secure)).replace("TWO", str(two.secure))
        with Node(folder, text) as node:
            wait_for(lambda: all(row["why"].startswith("TLS") for row in node.servers().values()), "good checks")
            yield node, one, two


def visit(node: Node, *words: str, version: str = "-tls1_2") -> tuple[str, str]:
    """One visit of openssl s_client: whether its session was new or resumed, and who answered."""
    program = find("openssl")
    assert program
    done = subprocess.run(
        [program, "s_client", "-connect", f"127.0.0.1:{node.port}", "-servername", NAME, version, "-ign_eof", *words],
        input=f"GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n",
        capture_output=True,
        text=True,
        timeout=30,
    )
    server = re.search(r"(?m)^X-Server: (\w+)", done.stdout)
    session = re.search(r"(?m)^(New|Reused), TLSv", done.stdout)
    assert server, done.stdout + done.stderr
    assert session, done.stdout + done.stderr
    return session[1], server[1]


Visit = Callable[..., tuple[str, str]]


@pytest.mark.needs("nginx", "openssl")
@pytest.mark.parametrize("ticket", [[], ["-no_ticket"]], ids=["ticket", "identifier"])
def test_a_session_comes_back_to_its_server(tmp_path: Path, certificate: Path, ticket: list[str]) -> None:
    files = [tmp_path / f"session{number}" for number in range(6)]
    with cluster(tmp_path, certificate) as (node, one, _):

        def come_back() -> list[tuple[str, str]]:
            return [visit(node, *ticket, "-sess_in", str(file)) for file in files]

        first = [visit(node, *ticket, "-sess_out", str(file)) for file in files]
        assert [session for session, _ in first] == ["New"] * 6
        homes = [server for _, server in first]
        assert set(homes) == {"one", "two"}
        expected = [("Reused", home) for home in homes]
        assert come_back() == expected

        l7lb(node, "reload")
        assert come_back() == expected

        node.signal(15)
        node.wait()
        node.start()
        wait_for(lambda: all(row["why"].startswith("TLS") for row in node.servers().values()), "good checks")
        assert come_back() == expected

        one.kill()
        wait_for(lambda: node.servers()["one"]["state"] == "down", "a bad check")
        assert come_back() == [("Reused" if home == "two" else "New", "two") for home in homes]


@pytest.mark.needs("nginx", "openssl")
def test_tls_13_hides_sessions_and_the_next_key_decides(tmp_path: Path, certificate: Path) -> None:
    with cluster(tmp_path, certificate, "{tls_session: {then: source}}") as (node, _, _):
        file = tmp_path / "session"
        session, home = visit(node, "-sess_out", str(file), version="-tls1_3")
        assert session == "New"
        for _ in range(4):
            assert visit(node, "-sess_in", str(file), version="-tls1_3") == ("Reused", home)


@pytest.mark.needs("nginx", "openssl")
def test_rules_by_name_and_protocol(tmp_path: Path, certificate: Path) -> None:
    program = find("openssl")
    assert program
    with cluster(tmp_path, certificate) as (node, _, _):

        def ask(*words: str) -> str:
            done = subprocess.run(
                [program, "s_client", "-connect", f"127.0.0.1:{node.port}", *words],
                input="",
                capture_output=True,
                text=True,
                errors="replace",  # a server of HTTP/2 speaks first, and not in text
                timeout=30,
            )
            return done.stdout + done.stderr

        assert "ALPN protocol: h2" in ask("-servername", "a.example.com", "-alpn", "h2,http/1.1")
        assert "tlsv1 unrecognized name" in ask("-servername", "a.example.com", "-alpn", "http/1.1")
        assert "alert number 112" in ask("-servername", "nobody.example.org")
        assert "alert number 109" in ask("-noservername")
        assert "alert handshake failure" in ask("-noservername", "-tls1_2")
        with socket.create_connection(("127.0.0.1", node.port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert re.search(r"listener secure refused 127.0.0.1:\d+: tls malformed: plain HTTP", node.output())


@pytest.mark.needs("nginx", "curl")
def test_curl_gets_a_large_file_whole(tmp_path: Path, certificate: Path) -> None:
    import hashlib

    with cluster(tmp_path, certificate) as (node, one, two):
        expected = one.file("large", 20_000_000)
        two.file("large", 20_000_000)
        program = find("curl")
        assert program
        for version in ("--http1.1", "--http2"):
            done = subprocess.run(
                [program, "-sk", version, "--resolve", f"{NAME}:{node.port}:127.0.0.1",
                 f"https://{NAME}:{node.port}/file/large"],
                capture_output=True,
                timeout=60,
                check=True,
            )  # fmt: skip
            assert hashlib.sha256(done.stdout).hexdigest() == expected


class Greeter:
    """A server of a protocol over TLS that says who it is, and what it is asked after that."""

    def __init__(self, name: str, certificate: Path, greeting: str, tickets: bool) -> None:
        self.name = name
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        self.context.maximum_version = ssl.TLSVersion.TLSv1_2
        if not tickets:
            self.context.options |= ssl.OP_NO_TICKET
        self.greeting = greeting.format(name=name)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self.thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                with contextlib.suppress(OSError):
                    self._greet(connection)
                connection.close()

    def _greet(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with self.context.wrap_socket(connection, server_side=True) as secure:
            if self.greeting:
                secure.sendall(self.greeting.encode())
            asked = secure.recv(1000)
            secure.sendall(f"{self.name} heard {asked.decode().strip()}\r\n".encode())
            secure.unwrap()  # OpenSSL forgets a session whose connection was not shut down


PROTOCOLS = {
    "imaps": ("* OK [CAPABILITY IMAP4rev1] {name}\r\n", "a LOGOUT\r\n"),
    "pop3s": ("+OK {name}\r\n", "QUIT\r\n"),
    "rtsps": ("", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"),
}


@pytest.mark.parametrize("tickets", [True, False], ids=["ticket", "identifier"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_over_tls(tmp_path: Path, certificate: Path, protocol: str, tickets: bool) -> None:
    greeting, asked = PROTOCOLS[protocol]
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with Greeter("one", certificate, greeting, tickets) as one, Greeter("two", certificate, greeting, tickets) as two:
        text = f"""
listeners:
  - {{name: {protocol}, protocol: tls-passthrough, bind: ["127.0.0.1:PORT"], routes: [{{pool: servers}}]}}
pools:
  servers:
    persistence: tls_session
    servers: [{{name: one, address: "127.0.0.1:{one.port}"}}, {{name: two, address: "127.0.0.1:{two.port}"}}]
"""
        with Node(tmp_path, text) as node:

            def talk(session: ssl.SSLSession | None = None) -> tuple[str, bool, ssl.SSLSession | None]:
                with (
                    socket.create_connection(("127.0.0.1", node.port), 10) as plain,
                    client.wrap_socket(plain, session=session, server_hostname=NAME) as secure,
                ):
                    if greeting:
                        said = secure.recv(1000).decode()
                        assert greeting.partition("{")[0] in said
                    secure.sendall(asked.encode())
                    answer = secure.recv(1000).decode()
                    assert answer.partition(" heard ")[2].strip() == asked.strip()
                    found = secure.session_reused or False, secure.session
                    secure.unwrap()
                    return answer.partition(" ")[0], *found

            first = [talk() for _ in range(4)]
            assert {name for name, _, _ in first} == {"one", "two"}
            for name, _, session in first:
                assert talk(session)[:2] == (name, True)
