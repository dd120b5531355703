"""The PROXY protocol between real programs: HAProxy and curl in front, nginx and HAProxy behind."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import trustme
from scenario_node import Nginx, Node, Wrk, find, free_port, l7lb, wait_for

from l7lb.core.contracts import Peer
from l7lb.core.proxy_protocol.reading import HeaderFault, HeaderReader

pytestmark = pytest.mark.scenario

FRONT = "127.0.0.2"  # the balancer in front, which is listed
CLIENT = "127.0.0.3"
TEXT = f"""
access_log: {{path: access.log}}
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:PORT"]
    proxy_protocol: {{from: [{FRONT}]}}
    timeouts: {{handshake: 1s}}
    routes:
      - {{match: {{path: "/told", source: {CLIENT}}}, respond: {{status: 200, body: "told\\n"}}}}
      - {{match: {{path: "/told"}}, respond: {{status: 403}}}}
      - {{pool: web}}
pools:
  web:
    servers: [SERVERS]
"""


@contextlib.contextmanager
def haproxy(folder: Path, frontends: str) -> Iterator[None]:
    """HAProxy in the foreground, in mode tcp unless its part of the configuration says other."""
    program = find("haproxy")
    assert program
    file = folder / "haproxy.cfg"
    head = "global\n  maxconn 500\ndefaults\n  mode tcp\n  timeout connect 2s\n  timeout client 20s\n  timeout server 20s\n"
    file.write_text(head + frontends)
    log = folder / "haproxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-db", "-f", str(file)], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        for line in frontends.splitlines():
            if line.strip().startswith("bind 127"):
                port = int(line.split()[1].rpartition(":")[2])
                wait_for(lambda port=port: _listens(port), f"HAProxy:\n{log.read_text()}")
        yield
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def curl(*words: str) -> tuple[int, str]:
    """curl's exit code and what it printed."""
    done = subprocess.run(
        [find("curl") or "curl", "--silent", "--max-time", "10", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout


def to_l7lb(name: str, port: int, node: Node, options: str) -> str:
    """A frontend that sends its clients to the node, from the listed address."""
    return (
        f"listen {name}\n  bind 127.0.0.1:{port}\n  unique-id-format %{{+X}}o%ci:%cp\n"
        f"  server l7lb 127.0.0.1:{node.port} source {FRONT} {options}\n"
    )


class Recorder:
    """A server that wants a PROXY header, keeps it, and answers each request that comes behind it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Peer, bytes]] = []  # of each request: whom the header told, and its head
        self.refused = 0
        self.checks = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader, data = HeaderReader(4096), b""
        with connection, contextlib.suppress(OSError):
            try:
                while reader.header is None:
                    piece = connection.recv(1)
                    if not piece:
                        return
                    reader.feed(piece)
            except HeaderFault:
                self.refused += 1
                return
            if reader.header.local:
                self.checks += 1
            peer = reader.header.peer(Peer("", 0, "", 0))
            while True:
                while b"\r\n\r\n" not in data:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    data += piece
                request, _, data = data.partition(b"\r\n\r\n")
                if not reader.header.local:
                    self.seen.append((peer, request))
                text = f"{peer.client} {peer.client_port}\n".encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))


@pytest.mark.needs("haproxy", "curl")
def test_haproxy_in_front_tells_the_client_in_every_form(tmp_path: Path) -> None:
    forms = {
        "v1": "send-proxy",
        "v2": "send-proxy-v2",
        "checksum": "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        "all": "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id",
        "checked": "send-proxy-v2 check inter 100ms",
    }
    ports = {name: free_port() for name in forms}
    with Recorder() as server:
        text = TEXT.replace("SERVERS", f'{{name: web1, address: "127.0.0.1:{server.port}", send_proxy: v2}}')
        with Node(tmp_path, text) as node:
            parts = [to_l7lb(name, ports[name], node, options) for name, options in forms.items()]
            with haproxy(tmp_path, "".join(parts)):
                for name, port in ports.items():
                    assert curl("--interface", CLIENT, f"http://127.0.0.1:{port}/told") == (0, "told\n"), name
                    code, text = curl("--interface", CLIENT, f"http://127.0.0.1:{port}/")
                    assert (code, text.split()[0]) == (0, CLIENT), name
                told = {peer.front.unique_id for peer, _ in server.seen if peer.front and peer.front.unique_id}
                assert len(told) == 2
            log = tmp_path / "access.log"
            wait_for(lambda: log.read_text().count("\n") == 2 * len(forms), "the access log")
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            assert {line["client"] for line in lines} == {CLIENT}


@pytest.mark.needs("haproxy", "curl")
def test_tls_ended_by_haproxy_is_told_through_both(tmp_path: Path) -> None:
    authority = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    authority.issue_cert("www.example.com").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "front.pem"))
    authority.issue_cert("a@example.com", common_name="someone").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "client.pem")
    )
    port = free_port()
    with Recorder() as server:
        text = TEXT.replace("SERVERS", f'{{name: web1, address: "127.0.0.1:{server.port}", send_proxy: v2}}')
        with Node(tmp_path, text) as node:
            options = "send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c"
            bind = f"ssl crt {tmp_path}/front.pem ca-file {tmp_path}/ca.pem verify optional"
            part = to_l7lb("tls", port, node, options).replace(f":{port}\n", f":{port} {bind}\n")
            with haproxy(tmp_path, part):
                words = ("--cacert", str(tmp_path / "ca.pem"), "--resolve", f"www.example.com:{port}:127.0.0.1")
                url = f"https://www.example.com:{port}/"
                assert curl(*words, "--interface", CLIENT, url)[0] == 0
                assert curl(*words, "--interface", CLIENT, "--cert", str(tmp_path / "client.pem"), url)[0] == 0
    without, known = [peer for peer, _ in server.seen]
    for peer in (without, known):
        assert peer.client == CLIENT
        assert peer.tls
        assert peer.handshake.sni == b"www.example.com"
        assert peer.handshake.version.startswith("TLSv1.")
        assert peer.handshake.cipher
    assert without.handshake.certificate is None
    assert (known.handshake.certificate.common_name, known.handshake.certificate.verified) == ("someone", True)
    assert all(b"X-Forwarded-Proto: https" in request for _, request in server.seen)


@pytest.mark.needs("curl")
def test_curl_tells_and_a_stranger_is_refused(tmp_path: Path) -> None:
    text = TEXT.replace("SERVERS", '{name: web1, address: "127.0.0.1:1"}')
    with Node(tmp_path, text) as node:
        url = f"{node.url}/told"
        # curl tells its own address: that of the interface.
        assert curl("--haproxy-protocol", "--interface", FRONT, "--write-out", "%{http_code}", url) == (0, "403")
        assert curl("--interface", CLIENT, url) == (0, "told\n")  # a stranger without a header is served
        assert curl("--haproxy-protocol", "--interface", CLIENT, url)[0] in (52, 55, 56)
        assert curl("--interface", FRONT, url)[0] in (52, 55, 56)  # a listed one without is not
        wait_for(lambda: "refused 127.0.0.3" in node.output(), "the log")
        assert "it is not listed, and sent a PROXY header all the same" in node.output()


@pytest.mark.needs("nginx", "curl")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_behind_reads_what_is_told_and_answers_checks(tmp_path: Path, version: str) -> None:
    server = Nginx(tmp_path, "behind")
    file = server.folder / "nginx.conf"
    proxied = free_port()
    text = file.read_text()
    text = text.replace(" backlog=4096;", f";\n        listen 127.0.0.1:{proxied} proxy_protocol;", 1)
    text = text.replace('return 200 "behind\\n"', 'return 200 "$proxy_protocol_addr $http_x_forwarded_for\\n"')
    file.write_text(text)
    with server:
        health = "    health: {http: {path: /health}, interval: 100ms, rise: 1, fall: 1}\n"
        one = f'{{name: web1, address: "127.0.0.1:{proxied}", send_proxy: {version}}}'
        with Node(tmp_path, TEXT.replace("SERVERS", one) + health) as node:
            wait_for(lambda: node.servers()["web1"]["why"].startswith("status 200"), "a good check")
            assert node.servers()["web1"]["state"] == "up"
            assert curl("--interface", CLIENT, f"{node.url}/") == (0, f"{CLIENT} {CLIENT}\n")
            # The same server without the header: nginx refuses its checks, which shows that it wants one.
            node.write(text=TEXT.replace("SERVERS", one.replace(f", send_proxy: {version}", "")) + health)
            l7lb(node, "reload")
            wait_for(lambda: node.servers()["web1"]["state"] == "down", "bad checks")


@pytest.mark.needs("haproxy", "curl")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_behind_reads_what_is_told_and_answers_checks(tmp_path: Path, version: str) -> None:
    port = free_port()
    part = (
        f"frontend behind\n  mode http\n  bind 127.0.0.1:{port} accept-proxy\n"
        '  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[dst]:%[dst_port]\\n"\n'
    )
    health = "    health: {protocol: {}, interval: 100ms, rise: 1, fall: 1}\n"
    text = TEXT.replace("SERVERS", f'{{name: web1, address: "127.0.0.1:{port}", send_proxy: {version}}}')
    with haproxy(tmp_path, part), Node(tmp_path, text + health) as node:
        wait_for(lambda: node.servers()["web1"]["why"].startswith("status"), "a good check")
        assert node.servers()["web1"]["state"] == "up"
        code, answer = curl("--interface", CLIENT, "--local-port", "40000-41000", f"{node.url}/")
        assert code == 0
        source, destination = answer.split()
        assert source.startswith(f"{CLIENT}:4")
        assert destination == f"127.0.0.1:{node.port}"


@pytest.mark.needs("haproxy", "wrk")
def test_a_reload_under_load_loses_nothing_and_mixes_nobody_up(tmp_path: Path) -> None:
    port = free_port()
    with Recorder() as server:
        one = f'{{name: web1, address: "127.0.0.1:{server.port}", send_proxy: v2}}'
        with Node(tmp_path, TEXT.replace("SERVERS", one)) as node:
            url = f"http://127.0.0.1:{port}/"
            with (
                haproxy(tmp_path, to_l7lb("front", port, node, "send-proxy-v2")),
                Wrk(url, 3, 8, None, "Connection: close") as closing,
                Wrk(url, 3, 8) as keeping,
            ):
                for number in range(6):
                    node.write(text=TEXT.replace("SERVERS", one).replace("1s", f"{number + 2}s"))
                    l7lb(node, "reload")
                kept = keeping.end()
                closed = closing.end()
            assert kept.failed == closed.failed == 0
            assert kept.requests > 100
            assert closed.requests > 100
            assert server.refused == 0
            assert {peer.client for peer, _ in server.seen} == {"127.0.0.1"}
            for peer, request in server.seen:
                assert f"X-Forwarded-For: {peer.client}".encode() in request


@pytest.mark.needs("haproxy", "nginx", "curl")
def test_before_tls_on_both_sides(tmp_path: Path) -> None:
    """HAProxy passes TLS through behind a header, l7lb ends it, and tells nginx before the TLS that it speaks to it."""
    authority = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    issued = authority.issue_cert("www.example.com")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (tmp_path / "cert.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    server, secured, port = Nginx(tmp_path, "behind"), free_port(), free_port()
    file = server.folder / "nginx.conf"
    tls = f"ssl_certificate {tmp_path}/cert.pem; ssl_certificate_key {tmp_path}/key.pem;"
    listen = f";\n        listen 127.0.0.1:{secured} ssl proxy_protocol;\n        {tls}"
    text = file.read_text().replace(" backlog=4096;", listen, 1)
    file.write_text(text.replace('return 200 "behind\\n"', 'return 200 "$proxy_protocol_addr $ssl_protocol\\n"'))
    to_nginx = "send_proxy: v2, tls: {ca: ca.pem, server_name: www.example.com}"
    one = f'{{name: web1, address: "127.0.0.1:{secured}", {to_nginx}}}'
    text = TEXT.replace("SERVERS", one).replace(
        "    timeouts:", "    tls: {certificates: [{cert: cert.pem, key: key.pem}]}\n    timeouts:"
    )
    health = "    health: {protocol: {}, interval: 100ms, rise: 1, fall: 1}\n"
    with server, Node(tmp_path, text + health) as node:
        wait_for(lambda: node.servers()["web1"]["why"].startswith("status"), "a good check")
        assert node.servers()["web1"]["state"] == "up"
        with haproxy(tmp_path, to_l7lb("front", port, node, "send-proxy-v2")):
            words = ("--cacert", str(tmp_path / "ca.pem"), "--resolve", f"www.example.com:{port}:127.0.0.1")
            for version in ("--http1.1", "--http2"):
                code, answer = curl(*words, version, "--interface", CLIENT, f"https://www.example.com:{port}/")
                assert (code, answer.split()[0]) == (0, CLIENT)
                assert answer.split()[1].startswith("TLSv1.")
