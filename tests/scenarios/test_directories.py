"""A node that asks directories: a web mail program's requests go where slapd, a file, or a program over HTTP says."""

from __future__ import annotations

import http.client
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_process import alive
from scenario_node import Nginx, Node, free_port, l7lb, wait_for
from slapd_helpers import BASE, PASSWORD, READER, Slapd

pytestmark = [pytest.mark.scenario, pytest.mark.needs("slapd", "nginx")]

TEXT = """\
directories:
  people:
    ldap:
      urls: [URLS]
      bind_dn: "{reader}"
      bind_password_file: secret
      base: "ou=people,{base}"
      filter: "(|(uid={{user}})(mail={{address}})(mailAlternateAddress={{address}}))"
      attributes: {{mailbox: uid, server: mailHost}}
      timeout: 2s
    cache: {{ttl: CACHE, negative_ttl: 0s}}
  legacy: {{file: {{path: users.txt, columns: [address, server]}}}}
addresses: {{lower_case: true, recipient_delimiter: "+", default_domain: example.com}}
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:PORT"]
    mailbox: {{header: x-mailbox}}
    routes: [{{directory: [people, legacy], pool: mail}}]
pools:
  mail:
    balance: {{hash: mailbox}}
    persistence: {{mailbox: {{expire: 1s}}}}
    servers: [SERVERS]
"""


@pytest.fixture
def slapd(tmp_path: Path) -> Iterator[Slapd]:
    made = Slapd(tmp_path / "slapd")
    yield made
    made.stop()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[list[Nginx]]:
    with Nginx(tmp_path, "mx1") as one, Nginx(tmp_path, "mx2") as two:
        yield [one, two]


def text(web: list[Nginx], *urls: str, cache: str = "0s") -> str:
    servers = ", ".join(f'{{name: {one.name}, address: "127.0.0.1:{one.port}"}}' for one in web)
    found = TEXT.format(reader=READER, base=BASE).replace("URLS", ", ".join(f'"{url}"' for url in urls))
    return found.replace("SERVERS", servers).replace("CACHE", cache)


class Measured(Node):
    """A node whose metrics can be read."""

    def write(self, **values: Any) -> None:
        super().write(**values)
        self.metrics = getattr(self, "metrics", 0) or free_port()
        admin = f'admin: {{socket: run/admin.sock, metrics: "127.0.0.1:{self.metrics}"}}'
        self.file.write_text(self.file.read_text().replace("admin: {socket: run/admin.sock}", admin))


@pytest.fixture
def node(tmp_path: Path, slapd: Slapd, web: list[Nginx]) -> Iterator[Measured]:
    folder = tmp_path / "node"
    folder.mkdir()
    secret = folder / "secret"
    secret.write_bytes(PASSWORD + b"\n")
    secret.chmod(0o600)
    (folder / "users.txt").write_text("carl@example.com mx2\nnowhere@example.com mx7\n")
    with Measured(folder, text(web, slapd.url)) as made:
        yield made


def ask(node: Node, mailbox: str | None) -> tuple[int, str]:
    """One request over one connection; its status, and the server that answered."""
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=20)
    headers = {} if mailbox is None else {"X-Mailbox": mailbox}
    try:
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("X-Server") or answer.read().decode().strip()
    finally:
        connection.close()


def metrics(node: Measured) -> str:
    with socket.create_connection(("127.0.0.1", node.metrics), timeout=20) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def children(node: Node, kind: str) -> list[int]:
    """The node's processes of a kind, by their command lines."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if kind.encode() in words and str(node.directory / "run").encode() in words:
                found.append(int(folder.name))
    return [pid for pid in found if alive(pid)]


def test_requests_go_where_the_directories_say(node: Measured) -> None:
    for name in ("anna@example.com", "Anna", "anna+lists@EXAMPLE.com", "a.b@example.org"):
        assert ask(node, name) == (200, "mx1")
    assert ask(node, "bert") == (200, "mx2")
    assert ask(node, "carl") == (200, "mx2")  # of the second directory
    servers = {ask(node, f"nobody{number}")[1] for number in range(20)}
    assert servers == {"mx1", "mx2"}  # in no directory: the pool chooses, by a hash
    assert len({ask(node, "nobody7") for _ in range(10)}) == 1
    assert ask(node, "twice@example.com")[0] == 503  # which of the two?
    assert ask(node, "nowhere")[0] == 503  # on a server that the pool doesn't have
    assert ask(node, "*") == ask(node, "*")
    numbers = metrics(node)
    assert 'l7lb_directory_answers_total{directory="legacy",status="found"}' in numbers
    assert 'l7lb_directory_answers_total{directory="people",status="failed"} 1.0' in numbers
    assert l7lb(node, "directory", "ask", "Anna+lists").split()[:3] == ["asked", "for", "anna@example.com,"]


def test_the_directory_process_may_die_at_any_time(node: Node) -> None:
    (first,) = children(node, "directories")
    for _ in range(3):
        (pid,) = children(node, "directories")
        os.kill(pid, signal.SIGKILL)
        assert ask(node, "anna") == (200, "mx1")  # it waits for the next one
        wait_for(lambda pid=pid: children(node, "directories") not in ([], [pid]), "another process")
    assert children(node, "directories") != [first]
    (pid,) = children(node, "directories")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert ask(node, "anna")[0] == 503
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ask(node, "anna") == (200, "mx1")


def test_a_directory_out_of_order_is_a_temporary_error_and_what_is_remembered_goes_on(
    node: Node, slapd: Slapd, web: list[Nginx]
) -> None:
    node.write(text=text(web, slapd.url, cache="1h"))
    l7lb(node, "reload")
    assert ask(node, "anna") == (200, "mx1")
    slapd.stop()
    assert ask(node, "bert")[0] == 503
    assert ask(node, "carl")[0] == 503  # he may be in the first
    assert ask(node, "anna") == (200, "mx1")
    slapd.start()
    wait_for(lambda: ask(node, "bert") == (200, "mx2"), "slapd to be asked again")


def test_the_next_server_is_asked_where_the_first_is_down(node: Node, slapd: Slapd, web: list[Nginx]) -> None:
    node.write(text=text(web, "ldap://127.0.0.1:1", slapd.url))
    l7lb(node, "reload")
    assert ask(node, "anna") == (200, "mx1")
    assert ask(node, "bert") == (200, "mx2")


def test_a_reload_begins_and_ends_the_process(node: Node, web: list[Nginx], slapd: Slapd) -> None:
    whole = node.text
    assert len(children(node, "directories")) == 1
    plain = whole[whole.index("addresses:") :].replace("directory: [people, legacy], ", "")
    node.write(text=plain)
    l7lb(node, "reload")
    wait_for(lambda: children(node, "directories") == [], "its end")
    assert ask(node, "bert")[0] == 200
    node.write(text=whole)
    l7lb(node, "reload")
    assert ask(node, "bert") == (200, "mx2")


def test_new_code_takes_over_and_nothing_is_left_behind(node: Node) -> None:
    (old,) = children(node, "directories")
    assert ask(node, "anna") == (200, "mx1")
    status: dict[str, Any] = node.serving()
    assert node.process is not None
    node.process.send_signal(signal.SIGUSR2)
    wait_for(lambda: (now := node.status()) and now["supervisor"]["pid"] != status["supervisor"]["pid"], "another one")
    node.serving()
    assert ask(node, "anna") == (200, "mx1")
    wait_for(lambda: children(node, "directories") not in ([], [old]) and not alive(old), "the old process's end")
    assert ask(node, "bert") == (200, "mx2")
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(30) == 0
    assert children(node, "directories") == []


def test_the_keeper_may_die_too(node: Node) -> None:
    (old,) = children(node, "directories")
    (keeper,) = children(node, "l7lb.proxy.workers.keeper")
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: children(node, "directories") not in ([], [old]), "another process")
    # The old one answers the workers that have found it, perhaps new ones too, until they end.
    assert ask(node, "anna") == (200, "mx1")
    assert ask(node, "bert") == (200, "mx2")
    assert node.process is not None
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(30) == 0
    wait_for(lambda: children(node, "directories") == [], "their end", 5.0)
