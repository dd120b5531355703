"""IMAP through l7lb to real Dovecots: every way to log in, both sides' TLS, and what must come through unharmed."""

from __future__ import annotations

import base64
import contextlib
import imaplib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_node import Node, free_port

from l7lb.demo import mailservers, secure
from l7lb.demo.cluster import wait_for
from l7lb.demo.mailclients import Imap, Target
from l7lb.demo.mailconf import Person
from l7lb.demo.mailservers import MAIL_PROTOCOLS, MailServer, Site, token

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(mailservers.missing()), reason=mailservers.missing()),
]
ALICE = Person("alice", "alice's secret")
ODD = Person("odd", 'p\xe4ss "w\\rd')
CONFIG = """
x-certificates: &certificates [{{cert: {folder}/mail.pem, key: {folder}/mail.key}}]
addresses: {{default_domain: example.com}}
listeners:
  - {{name: imap, protocol: imap4, bind: ["127.0.0.1:PORT"], tls: {{mode: starttls, certificates: *certificates}}, routes: &routes [{{match: {{address: "odd@*"}}, pool: strict}}, {{pool: mail}}]}}
  - {{name: imaps, protocol: imap4, bind: ["127.0.0.1:{imaps}"], tls: {{mode: implicit, certificates: *certificates}}, routes: *routes}}
  - {{name: plain, protocol: imap4, bind: ["127.0.0.1:{plain}"], login: {{cleartext: always}}, routes: *routes}}
pools:
  mail:
    client_address: {{imap4: id}}
    health: {{protocol: {{}}, interval: 1s}}
    servers: [{{name: mx1, host: 127.0.0.1, ports: {{imap4: {mx1}}}}}]
  strict:
    health: {{protocol: {{}}, interval: 1s}}
    servers: [{{name: mx2, host: 127.0.0.1, ports: {{imap4: {mx2}}}, tls: {{ca: {folder}/servers.pem, mode: starttls, server_name: 127.0.0.1}}}}]
"""


class Cluster:
    """A node, a server that trusts it, and one that wants TLS before any password."""

    def __init__(self, folder: Path) -> None:
        secure.make_certificate(folder, "servers", ["127.0.0.1"])
        secure.make_certificate(folder, "mail", ["127.0.0.1"])
        self.folder = folder
        pem, key = ((folder / name).read_bytes() for name in ("servers.pem", "servers.key"))
        self.site = Site([ALICE, ODD], "127.0.0.1:1", pem, key)
        self.servers = {
            name: MailServer(self.site, name, {each: free_port() for each in MAIL_PROTOCOLS}, trusting=name == "mx1")
            for name in ("mx1", "mx2")
        }
        self.ports = {"imaps": free_port(), "plain": free_port()}
        ports = {name: server.ports["imap4"] for name, server in self.servers.items()}
        self.node = Node(folder, CONFIG.format(folder=folder, **self.ports, **ports))

    def target(self, listener: str = "imap", source: str = "127.0.0.1") -> Target:
        port = self.ports.get(listener, self.node.port)
        certificate = None if listener == "plain" else self.folder / "mail.pem"
        return Target(f"127.0.0.1:{port}", certificate, listener == "imaps", source)

    def lines(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports["plain"]), 20)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("imap"))
    try:
        for server in made.servers.values():
            server.start()
        for server in made.servers.values():
            server.until_listening()
        with made.node:
            wait_for(lambda: all(row["state"] == "up" for row in made.node.servers().values()), "servers up")
            yield made
    finally:
        for server in made.servers.values():
            server.terminate()
        made.site.close()


@pytest.mark.parametrize("listener", ["imap", "imaps", "plain"])
@pytest.mark.parametrize("person", [ALICE, ODD])
def test_login_and_what_the_server_is_told(cluster: Cluster, listener: str, person: Person) -> None:
    source = f"127.0.0.{len(listener)}"
    with Imap(cluster.target(listener, source)) as imap:
        if person is ODD:
            imap.literal = person.password.encode()
            assert imap._simple_command("LOGIN", person.name)[0] == "OK"
        else:
            assert imap.login(person.name, person.password)[0] == "OK"
        assert b"NAMESPACE" in imap.capability()[1][0]
        assert imap.server() == ("mx2" if person is ODD else "mx1")
    server = cluster.servers["mx2" if person is ODD else "mx1"]
    seen = source if person is ALICE else "127.0.0.1"
    wait_for(lambda: any(one.client == seen for one in server.served(person.name)), f"a login from {seen}")


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"])
def test_every_mechanism(cluster: Cluster, mechanism: str) -> None:
    said = {
        "PLAIN": [b"\0alice\0alice's secret"],
        "LOGIN": [b"alice", b"alice's secret"],
        "XOAUTH2": [f"user=alice\1auth=Bearer {token('alice')}\1\1".encode()],
        "OAUTHBEARER": [f"n,a=alice,\1auth=Bearer {token('alice')}\1\1".encode()],
    }[mechanism]
    with Imap(cluster.target()) as imap:
        assert f"AUTH={mechanism}" in imap.capabilities
        left = list(said)
        assert imap.authenticate(mechanism, lambda _: left.pop(0))[0] == "OK"


def test_wrong_passwords_and_tokens(cluster: Cluster) -> None:
    with Imap(cluster.target("imaps")) as imap:
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            imap.login("alice", "wrong")
        expired = f"user=alice\1auth=Bearer {token('alice', -60)}\1\1".encode()
        left = [expired, b""]
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            imap.authenticate("XOAUTH2", lambda _: left.pop(0))
        assert left == []  # the error was shown as a challenge
        assert imap.login("alice", ALICE.password)[0] == "OK"


def test_passwords_in_the_clear_are_refused(cluster: Cluster) -> None:
    target = cluster.target()._replace(certificate=None)
    with Imap(target) as imap:
        assert "LOGINDISABLED" in imap.capabilities
        assert "STARTTLS" in imap.capabilities
        with pytest.raises(imaplib.IMAP4.error, match="PRIVACYREQUIRED"):
            imap.login("alice", ALICE.password)


def test_a_large_message_comes_back_as_it_was(cluster: Cluster) -> None:
    body = b"Subject: large\r\n\r\n" + base64.encodebytes(os.urandom(3_000_000)).replace(b"\n", b"\r\n")
    with Imap(cluster.target("imaps")) as imap:
        imap.login("alice", ALICE.password)
        assert imap.append("INBOX", "", "", body)[0] == "OK"
        imap.select("INBOX")
        number = imap.search(None, "SUBJECT", "large")[1][0].split()[-1].decode()
        fetched = imap.fetch(number, "(BODY.PEEK[])")[1][0]
        assert isinstance(fetched, tuple)
        assert fetched[1] == body


def test_commands_sent_behind_the_login_are_carried_out(cluster: Cluster) -> None:
    with cluster.lines() as sock:
        sock.sendall(b"a1 LOGIN {5+}\r\nalice {14+}\r\nalice's secret\r\na2 SELECT INBOX\r\na3 NOOP\r\na4 LOGOUT\r\n")
        said = b""
        while data := sock.recv(65536):
            said += data
    lines = said.split(b"\r\n")
    assert [line[:5] for line in lines if line[:1] == b"a"] == [b"a1 OK", b"a2 OK", b"a3 OK", b"a4 OK"]
    assert said.index(b"[CAPABILITY", said.index(b"a1 OK")) < said.index(b"a2 OK")


def test_idle_is_told_of_new_mail_at_once(cluster: Cluster) -> None:
    with cluster.lines() as sock, sock.makefile("rb") as lines, Imap(cluster.target()) as other:
        sock.sendall(b'a1 LOGIN alice "alice\'s secret"\r\na2 SELECT INBOX\r\na3 IDLE\r\n')
        while not lines.readline().startswith(b"+ idling"):
            pass
        other.login("alice", ALICE.password)
        other.append("INBOX", "", "", b"Subject: new\r\n\r\nx\r\n")
        while b"EXISTS" not in lines.readline():
            pass
        sock.sendall(b"DONE\r\n")
        while not lines.readline().startswith(b"a3 OK"):
            pass


def test_commands_put_in_before_tls_reach_nobody(cluster: Cluster) -> None:
    with socket.create_connection(("127.0.0.1", cluster.node.port), 20) as sock:
        assert sock.recv(1000).startswith(b"* OK")
        sock.sendall(b'a1 STARTTLS\r\na2 ID ("name" "evil")\r\n')
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1000) == b""
