"""Logins that a program judges over HTTP, as it would for nginx: where they go, and with what."""

from __future__ import annotations

import imaplib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scenario_node import Node, free_port, wait_for

from l7lb.demo import mailservers, secure
from l7lb.demo.mailconf import Person
from l7lb.demo.mailservers import MAIL_PROTOCOLS, MailServer, Site

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(mailservers.missing()), reason=mailservers.missing()),
]
ALICE = Person("alice", "alice's secret")
CONFIG = """
directories:
  judge: {{http: {{url: "http://127.0.0.1:{judge}/auth", timeout: 5s}}}}
addresses: {{default_domain: example.com}}
listeners:
  - name: imap
    protocol: imap4
    bind: ["127.0.0.1:PORT"]
    login: {{cleartext: always}}
    routes: [{{directory: judge, pool: mail}}]
pools:
  mail:
    persistence: {{mailbox: {{expire: 1s}}}}
    servers:
      - {{name: mx1, host: 127.0.0.1, ports: {{imap4: {mx1}}}}}
      - {{name: mx2, host: 127.0.0.1, ports: {{imap4: {mx2}}}}}
"""


class Judge(BaseHTTPRequestHandler):
    """Lets alice in with one password of its own, and the server's is another."""

    server_port: ClassVar[str] = ""
    asked: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        asked = dict(self.headers.items())
        self.asked.append(asked)
        name, password = asked["Auth-User"], asked["Auth-Pass"]
        if name == "sick":
            answer = {"Auth-Status": "Database is down", "Auth-Error-Code": "451 4.3.0"}
        elif name == "Alice@Example.com" and password == "the%20door's":
            answer = {
                "Auth-Status": "OK",
                "Auth-Server": "127.0.0.1",
                "Auth-Port": self.server_port,
                "Auth-User": ALICE.name,
                "Auth-Pass": ALICE.password,
            }
        else:
            answer = {"Auth-Status": "Invalid login or password"}
        self.send_response(200)
        for header, value in answer.items():
            self.send_header(header, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def judge() -> Iterator[int]:
    Judge.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def node(tmp_path: Path, judge: int) -> Iterator[Node]:
    secure.make_certificate(tmp_path, "servers", ["127.0.0.1"])
    pem, key = ((tmp_path / name).read_bytes() for name in ("servers.pem", "servers.key"))
    site = Site([ALICE], "127.0.0.1:1", pem, key)
    servers = [MailServer(site, name, {each: free_port() for each in MAIL_PROTOCOLS}) for name in ("mx1", "mx2")]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.until_listening()
        ports: dict[str, Any] = {server.name: server.ports["imap4"] for server in servers}
        Judge.server_port = str(ports["mx2"])
        with Node(tmp_path / "node", CONFIG.format(judge=judge, **ports)) as made:
            yield made
    finally:
        for server in servers:
            server.terminate()
        site.close()


def test_the_program_says_who_may_come_in_where_to_and_as_whom(node: Node) -> None:
    client = imaplib.IMAP4("127.0.0.1", node.port, timeout=20)
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        client.login("Alice@Example.com", ALICE.password)
    assert client.login("Alice@Example.com", "the door's")[0] == "OK"
    assert client.select("INBOX")[0] == "OK"
    (session,) = wait_for(lambda: node.admin.get("sessions"), "the session")
    assert (session["server"], session["mailbox"]) == ("mx2", ALICE.name)
    first, second = Judge.asked[:2]
    assert (first["Auth-Login-Attempt"], second["Auth-Login-Attempt"]) == ("1", "2")
    assert (second["Auth-Method"], second["Auth-Protocol"], second["Client-IP"]) == ("plain", "imap", "127.0.0.1")
    assert second["Auth-Address"] == "alice@example.com"
    client.logout()


def test_a_program_in_trouble_is_no_refusal(node: Node) -> None:
    client = imaplib.IMAP4("127.0.0.1", node.port, timeout=20)
    with pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
        client.login("sick", "x")
    client.logout()
