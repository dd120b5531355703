"""TLS with the clients and servers that are out there: openssl, curl, sslscan, wrk, nginx."""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID
from scenario_node import Nginx, Node, Wrk, find, free_port, l7lb, wait_for

pytestmark = [pytest.mark.scenario, pytest.mark.needs("nginx", "curl", "openssl", "wrk"), pytest.mark.timeout(120)]

ECDSA = trustme.KeyType.ECDSA
AUTHORITY = trustme.CA(key_type=ECDSA)

TEXT = """
access_log: {{path: run/access.log, format: json}}
listeners:
  - name: https
    protocol: http
    bind: ["127.0.0.1:PORT"]
    tls:
      certificates:
        - {{cert: one.pem, key: one.key, ocsp: one.der}}
        - {{cert: two.pem, key: two.key}}
        - {{cert: rsa.pem, key: rsa.key}}
    routes: [{{pool: web}}]
  - name: strict
    protocol: http
    bind: ["127.0.0.1:{strict}"]
    tls: {{certificates: [{{cert: one.pem, key: one.key}}], client_ca: ca.pem}}
    routes: [{{pool: web}}]
  - name: redirect
    protocol: http
    bind: ["127.0.0.1:{plain}"]
    routes: [{{redirect: {{location: "https://{{host}}{{path}}", status: 301}}}}]
pools:
  web:
    balance: round-robin
    health: {{{check}, interval: 200ms, timeout: 1s, rise: 1, fall: 1}}
    servers:
      - {{name: web1, address: "127.0.0.1:{web1}", tls: {{ca: ca.pem, server_name: web1.example.com}}}}
"""


class TlsNginx(Nginx):
    """nginx that speaks TLS 1.2 and 1.3."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        write(self.folder, "own", AUTHORITY.issue_cert(f"{name}.example.com", key_type=ECDSA))
        path = self.folder / "nginx.conf"
        self.inner = free_port()
        tls = f"ssl_certificate {self.folder}/own.pem; ssl_certificate_key {self.folder}/own.key;"
        text = path.read_text().replace(
            f"listen 127.0.0.1:{self.port} backlog=4096;",
            f"listen 127.0.0.1:{self.port}; listen 127.0.0.1:{self.inner} ssl; {tls}",
        )
        path.write_text(text)


def write(folder: Path, label: str, leaf: trustme.LeafCert) -> None:
    """A certificate's files, the key first as renewal should write them."""
    for ending, data in (
        ("key", leaf.private_key_pem.bytes()),
        ("pem", b"".join(part.bytes() for part in leaf.cert_chain_pems)),
    ):
        temporary = folder / f"{label}.{ending}.new"
        temporary.write_bytes(data)
        temporary.replace(folder / f"{label}.{ending}")


def ocsp_response(leaf: trustme.LeafCert) -> bytes:
    """A responder's good answer, from a throw-away responder."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "responder")])
    issuer = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    issuer = issuer.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    signer = issuer.sign(key, hashes.SHA256())
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()),
        issuer=signer,
        algorithm=hashes.SHA256(),
        cert_status=ocsp.OCSPCertStatus.GOOD,
        this_update=now,
        next_update=now + datetime.timedelta(days=7),
        revocation_time=None,
        revocation_reason=None,
    )
    signed = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsNginx]:
    with TlsNginx(tmp_path, "web1") as one:
        yield one


@pytest.fixture
def node(tmp_path: Path, server: TlsNginx, request: pytest.FixtureRequest) -> Iterator[Node]:
    directory = tmp_path / "node"
    directory.mkdir()
    one = AUTHORITY.issue_cert("one.example", key_type=ECDSA)
    write(directory, "one", one)
    (directory / "one.der").write_bytes(ocsp_response(one))
    write(directory, "two", AUTHORITY.issue_cert("*.two.example", key_type=ECDSA))
    write(directory, "rsa", AUTHORITY.issue_cert("one.example", key_type=trustme.KeyType.RSA))
    (directory / "ca.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    values = {"strict": free_port(), "plain": free_port(), "web1": server.inner}
    text = TEXT.format(**values, check=getattr(request, "param", "http: {path: /health}"))
    with Node(directory, text) as running:
        running.ports = values  # type: ignore[attr-defined]
        wait_for(lambda: running.servers()["web1"]["why"].startswith(("status", "connected")), "the first check")
        yield running


def s_client(node: Node, *words: str, port: int = 0, text: str = "GET / HTTP/1.0\r\n\r\n") -> str:
    """openssl s_client with one request."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port or node.port}", "-CAfile", "ca.pem", "-ign_eof"]
    done = subprocess.run(
        [*command, *words], input=text, capture_output=True, text=True, timeout=30, cwd=node.directory, errors="replace"
    )
    return done.stdout + done.stderr


def curl(node: Node, *words: str) -> str:
    """curl, which must succeed."""
    command = ["curl", "--silent", "--show-error", "--cacert", "ca.pem", "--connect-to", f"::127.0.0.1:{node.port}"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=30, cwd=node.directory)
    assert done.returncode == 0, done.stderr
    return done.stdout


def workers(node: Node) -> set[int]:
    return {worker["pid"] for worker in node.admin.get("status")["workers"] if worker["ready"]}


def test_clients_of_all_kinds(node: Node) -> None:
    assert curl(node, "https://one.example/") == "web1\n"
    assert curl(node, "--tlsv1.2", "--tls-max", "1.2", "https://any.two.example/") == "web1\n"
    words = ["--connect-to", f"::127.0.0.1:{node.ports['plain']}"]  # type: ignore[attr-defined]
    found = subprocess.run(
        ["curl", "--silent", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", *words, "http://one.example/a?b"],
        capture_output=True,
        text=True,
    )
    assert found.stdout == "301 https://one.example/a?b"
    shown = s_client(node, "-tls1_3", "-alpn", "http/1.1", "-servername", "x.two.example")
    assert "ALPN protocol: http/1.1" in shown
    assert "Verify return code: 0 (ok)" in shown
    assert "New, TLSv1.3" in shown
    shown = s_client(node, "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256", "-servername", "one.example")
    assert "Cipher is ECDHE-RSA-AES128-GCM-SHA256" in shown
    assert "HTTP/1.1 200 OK" in shown
    plain = subprocess.run(
        ["curl", "--silent", f"http://127.0.0.1:{node.port}/"], capture_output=True, text=True, timeout=10
    )
    assert "This port speaks HTTPS" in plain.stdout


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_sessions_outlive_what_ends(node: Node, version: str) -> None:
    """A ticket opens at every worker, after a worker's death, a reload and the supervisor's death."""

    def resume() -> str:
        return s_client(node, version, "-sess_in", "session")

    assert "New, " in s_client(node, version, "-sess_out", "session")
    for _ in range(8):  # the kernel spreads them over both workers
        assert "Reused, " in resume()
    before = workers(node)
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(workers(node)) == 2 and victim not in workers(node), "another worker")
    for _ in range(4):
        assert "Reused, " in resume()
    node.admin.post("reload")
    for _ in range(4):
        assert "Reused, " in resume()
    node.signal(signal.SIGKILL)  # the supervisor
    node.wait()
    assert "Reused, " in resume()
    node.start(group=node.groups[0])
    for _ in range(4):
        assert "Reused, " in resume()
    shown = s_client(node, version, "-sess_in", "session", port=node.ports["strict"])  # type: ignore[attr-defined]
    assert "Reused, " not in shown
    assert "200 OK" not in shown


def test_clients_with_certificates(node: Node) -> None:
    write(node.directory, "alice", AUTHORITY.issue_cert("alice.example", key_type=ECDSA))
    strict = node.ports["strict"]  # type: ignore[attr-defined]
    assert "200 OK" in s_client(node, "-cert", "alice.pem", "-key", "alice.key", port=strict)
    refused = s_client(node, port=strict)
    assert "200 OK" not in refused
    assert "certificate required" in refused


def test_what_is_stapled(node: Node) -> None:
    assert "OCSP Response Status: successful" in s_client(node, "-status", "-servername", "one.example")
    assert "OCSP response: no response sent" in s_client(node, "-status", "-servername", "a.two.example")


def test_no_renegotiation(node: Node) -> None:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{node.port}", "-CAfile", "ca.pem", "-tls1_2"]
    done = subprocess.run(
        command, input="R\n", capture_output=True, text=True, timeout=30, cwd=node.directory, errors="replace"
    )
    assert "RENEGOTIATING" in done.stdout + done.stderr
    assert "no renegotiation" in done.stdout + done.stderr
    assert "200 OK" in s_client(node, "-tls1_2")


@pytest.mark.needs("sslscan")
def test_nothing_is_weak(node: Node) -> None:
    """sslscan with the default configuration."""
    command = ["sslscan", "--no-colour", "--show-certificate", f"127.0.0.1:{node.port}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=90).stdout
    versions = dict(re.findall(r"^(SSLv[23]|TLSv1\.[0-3]) +(enabled|disabled)", shown, re.MULTILINE))
    assert [name for name, state in versions.items() if state == "enabled"] == ["TLSv1.2", "TLSv1.3"]
    accepted = re.findall(r"^(?:Preferred|Accepted) +(\S+) +(\d+) bits +(\S+)", shown, re.MULTILINE)
    assert len(accepted) >= 6
    for version, bits, cipher in accepted:
        assert int(bits) >= 128
        assert cipher.startswith(("TLS_", "ECDHE-")), (version, cipher)
        assert "GCM" in cipher or "CHACHA20" in cipher, (version, cipher)
    assert "Session renegotiation not supported" in shown or "Secure session renegotiation supported" in shown
    assert "Insecure" not in shown
    assert "Compression enabled" not in shown
    groups = re.findall(r"^TLSv1\.[23] +(\d+) bits +(?:secp|x|ffdhe)", shown, re.MULTILINE)
    assert groups
    assert min(map(int, groups)) >= 128
    assert "not vulnerable to heartbleed" in shown
    assert "vulnerable to heartbleed" not in shown.replace("not vulnerable to heartbleed", "")


@pytest.mark.parametrize("node", ["http: {path: /health}", "tcp: {}", "protocol: {}"], indirect=True)
def test_checks_speak_tls_to_a_server(node: Node, server: TlsNginx) -> None:
    assert node.servers()["web1"]["state"] == "up"
    other = trustme.CA(key_type=ECDSA)
    write(server.folder, "own", other.issue_cert("web1.example.com", key_type=ECDSA))
    server.kill()
    server.start()
    found = wait_for(lambda: (row := node.servers()["web1"])["why"].startswith("TLS: ") and row, "a check that fails")
    assert found["state"] == "down"
    assert "certificate" in found["why"]


def test_a_renewed_certificate(node: Node) -> None:
    def serial() -> str:
        return re.findall(r"serial=(\w+)", subprocess.run(
            f"openssl s_client -connect 127.0.0.1:{node.port} -servername one.example -sigalgs ECDSA+SHA256 "
            "< /dev/null 2> /dev/null | openssl x509 -noout -serial",
            shell=True, capture_output=True, text=True,
        ).stdout)[0]  # fmt: skip

    before = serial()
    write(node.directory, "one", AUTHORITY.issue_cert("one.example", key_type=ECDSA))
    wait_for(lambda: serial() != before, "the renewed certificate")
    after = serial()
    (node.directory / "one.key").write_text("nonsense")
    wait_for(lambda: "holds no private key" in node.output(), "a line about the broken key")
    assert serial() == after
    assert curl(node, "https://one.example/") == "web1\n"


def test_reloads_under_load(node: Node) -> None:
    with Wrk(f"https://127.0.0.1:{node.port}/", 6, 10) as load:
        fresh = Fresh(node)
        for number in range(20):
            write(node.directory, "two", AUTHORITY.issue_cert("*.two.example", key_type=ECDSA))
            node.admin.post("reload")
            assert number >= 0
        done = load.end()
        failed = fresh.stop()
    assert done.requests > 100
    assert done.failed == 0
    assert fresh.count > 10
    assert failed == []


class Fresh:
    """A client with a new connection for each request, in a thread."""

    def __init__(self, node: Node) -> None:
        self.count = 0
        self._failed: list[str] = []
        self._node = node
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        import ssl

        context = ssl.create_default_context(cafile=str(self._node.directory / "ca.pem"))
        context.check_hostname = False
        while not self._ending.is_set():
            try:
                with urllib.request.urlopen(
                    f"https://127.0.0.1:{self._node.port}/", context=context, timeout=10
                ) as answer:
                    assert answer.read() == b"web1\n"
                self.count += 1
            except (OSError, AssertionError) as error:
                self._failed.append(repr(error))

    def stop(self) -> list[str]:
        """What went wrong."""
        self._ending.set()
        self._thread.join()
        return self._failed


def test_large_files_through_tls(node: Node, server: TlsNginx, tmp_path: Path) -> None:
    digest = server.file("large", 30_000_000)
    found = curl(node, "--http1.1", "https://one.example/file/large", "-o", str(tmp_path / "got"), "-w", "%{http_code}")
    assert found == "200"
    import hashlib

    assert hashlib.sha256((tmp_path / "got").read_bytes()).hexdigest() == digest
    sent = tmp_path / "got"
    answer = curl(
        node,
        "--http1.1",
        "--data-binary",
        f"@{sent}",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "https://one.example/echo",
    )
    assert answer == "200"


def test_check_and_commands_know_it(node: Node) -> None:
    assert find("openssl")
    assert "https" in l7lb(node, "status")
    values: dict[str, Any] = node.admin.get("status")
    assert "PRIVATE" not in str(values)
