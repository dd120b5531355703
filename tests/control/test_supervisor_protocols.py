"""Servers of several protocols in a real node: each protocol has its own health, and users feel no other's."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest
from node_process import NodeProcess, free_port, wait_for

CONFIG = """\
node: test
workers: 1
shutdown: {{drain: 1s}}
admin: {{socket: run/admin.sock}}
listeners:
  - {{name: pop, protocol: pop3, bind: ["127.0.0.1:{pop}"], login: {{cleartext: always}}, routes: [{{pool: mail}}]}}
  - {{name: sieve, protocol: managesieve, bind: ["127.0.0.1:{sieve}"], login: {{cleartext: always}}, routes: [{{pool: mail}}]}}
pools:
  mail:
    balance: first
    health: {{protocol: {{}}, interval: 50ms, timeout: 1s, rise: 1, fall: 2, scope: {scope}}}
    servers:
      - {{name: mx1, host: 127.0.0.1, ports: {{pop3: {mx1[pop3]}, managesieve: {mx1[managesieve]}}}}}
      - {{name: mx2, host: 127.0.0.1, ports: {{pop3: {mx2[pop3]}, managesieve: {mx2[managesieve]}}}}}
"""
GREETINGS = {"pop3": b"+OK %s\r\n", "managesieve": b'"IMPLEMENTATION" "%s"\r\n"SASL" "PLAIN"\r\n"SIEVE" ""\r\nOK\r\n'}
ANSWERS = {
    b"CAPA": b"+OK\r\n.\r\n",
    b"LIST": b"+OK on %s\r\n",
    b"AUTHENTICATE": b"OK\r\n",
    b"LISTSCRIPTS": b'OK "%s"\r\n',
}


class Server:
    """A server of one protocol, which lets everybody in and says its name."""

    def __init__(self, name: str, protocol: str, port: int) -> None:
        greeting = GREETINGS[protocol] % name.encode()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    self.wfile.write(greeting)
                    while words := self.rfile.readline().split():
                        answer = ANSWERS.get(words[0].upper(), b"+OK\r\n" if protocol == "pop3" else b"OK\r\n")
                        self.wfile.write(answer % name.encode() if b"%s" in answer else answer)

        class Listening(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Listening(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Node(NodeProcess):
    """A node in front of two servers with two protocols each."""

    def __init__(self, directory: Path, scope: str) -> None:
        self.scope = scope
        self.pop, self.sieve = free_port(), free_port()
        self.ports = {name: {one: free_port() for one in GREETINGS} for name in ("mx1", "mx2")}
        self.servers = {
            (name, one): Server(name, one, port) for name, ports in self.ports.items() for one, port in ports.items()
        }
        super().__init__(directory)

    def write(self, **values: Any) -> None:
        self.file.write_text(CONFIG.format(pop=self.pop, sieve=self.sieve, scope=self.scope, **self.ports))

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        for server in self.servers.values():
            server.close()

    def kill(self, name: str, protocol: str) -> None:
        self.servers.pop((name, protocol)).close()

    def revive(self, name: str, protocol: str) -> None:
        self.servers[name, protocol] = Server(name, protocol, self.ports[name][protocol])

    def row(self, name: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.admin.get("servers")
        return next(row for row in rows if row["name"] == name)

    def serves(self, protocol: str) -> str:
        """The name of the server that a new user of that protocol gets, or the refusal."""
        port = self.pop if protocol == "pop3" else self.sieve
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock, sock.makefile("rwb") as stream:

            def ask(line: bytes, end: tuple[bytes, ...] = (b"+OK", b"-ERR", b"OK", b"NO", b"BYE")) -> str:
                stream.write(line)
                stream.flush()
                while not (answer := stream.readline()).startswith(end):
                    assert answer, "closed"
                return answer.decode().strip()

            if protocol == "pop3":
                ask(b"")
                ask(b"USER ann@example.com\r\n")
                answer = ask(b"PASS secret\r\n")
                return ask(b"LIST\r\n").removeprefix("+OK on ") if answer.startswith("+OK") else answer
            ask(b"")
            answer = ask(b'AUTHENTICATE "PLAIN" "AGFubkBleGFtcGxlLmNvbQBzZWNyZXQ="\r\n')
            return ask(b"LISTSCRIPTS\r\n").strip('OK "') if answer.startswith("OK") else answer


@pytest.mark.parametrize("scope", ["protocol", "server"])
def test_a_protocol_that_is_down_takes_its_server_out_for_itself_or_for_all(tmp_path: Path, scope: str) -> None:
    with Node(tmp_path, scope) as node:
        wait_for(lambda: len(node.row("mx1")["protocols"]) == 2, "both protocols to be checked")
        assert node.row("mx1")["why"] == "pop3, managesieve: all answer"
        assert (node.serves("pop3"), node.serves("managesieve")) == ("mx1", "mx1")
        node.kill("mx1", "pop3")
        wait_for(lambda: node.row("mx1")["protocols"]["pop3"]["state"] == "down", "pop3 of mx1 to be down")
        wait_for(lambda: node.serves("pop3") == "mx2", "pop3 to be served by the other")
        row = node.row("mx1")
        assert row["why"] == "pop3 is down: connection refused (2 of 2 checks)"
        if scope == "protocol":
            assert (row["state"], node.serves("managesieve")) == ("up", "mx1")
            node.kill("mx2", "pop3")
            wait_for(lambda: node.serves("pop3").startswith("-ERR [SYS/TEMP]"), "nobody to serve pop3")
            assert node.serves("managesieve") == "mx1"
            wait_for(lambda: "pool mail has no server left for pop3" in node.output(), "the log to tell of it")
        else:
            assert row["state"] == "down"
            wait_for(lambda: node.serves("managesieve") == "mx2", "the worker to leave it in all protocols")
        node.revive("mx1", "pop3")
        wait_for(lambda: node.serves("pop3") == "mx1", "pop3 of mx1 to be back")
        wait_for(lambda: node.row("mx1")["why"] == "pop3, managesieve: all answer", "all to be well")
