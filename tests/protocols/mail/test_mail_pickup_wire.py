"""POP3 and ManageSieve over real sockets, from the client to the server and back, at every split of what is sent."""

from __future__ import annotations

from typing import Any

import pytest

from l7lb.testing import Node
from l7lb.testing.playbook import Playbook

pytestmark = pytest.mark.asyncio

CONFIG: dict[str, Any] = {
    "addresses": {"recipient_delimiter": "+", "default_domain": "example.com"},
    "listeners": [
        {
            "name": name,
            "protocol": name,
            "bind": ["127.0.0.1:0"],
            "hostname": "lb1",
            "capabilities": capabilities,
            "login": {"cleartext": "always"},
            "routes": [{"pool": "mail"}],
        }
        for name, capabilities in (("pop3", ["TOP", "UIDL"]), ("managesieve", ["SIEVE fileinto", "NOTIFY mailto"]))
    ],
    "pools": {
        "mail": {
            "persistence": {"mailbox": {"expire": "15m"}},
            "servers": [{"name": "mx1", "host": "127.0.0.1", "ports": {"pop3": 110, "managesieve": 4190}}],
        }
    },
}
POP3 = r"""
client connects to pop3
client< +OK lb1 ready.
client> USER Anna+x
client> PASS a b
client> STAT
client< +OK
mx1 accepts
mx1> +OK hi
mx1< USER Anna+x
mx1> +OK
mx1< PASS a b
mx1> -ERR [AUTH] no
mx1 sees end
client< -ERR [AUTH] Authentication failed.
client< -ERR Unknown command.
client> AUTH PLAIN
client< + *
client> AGFubmEAc2VjcmV0
mx1 accepts
mx1> +OK hi
mx1< USER anna
mx1> +OK
mx1< PASS secret
mx1> +OK in
client< +OK Logged in.
client> RETR 1
mx1< RETR 1
mx1> +OK
mx1> ..
mx1> .
client< +OK
client< ..
client< .
client> QUIT
mx1< QUIT
mx1> +OK bye
mx1 closes
client< +OK bye
client sees end
"""
SIEVE = r"""
client connects to managesieve
client< "IMPLEMENTATION" "l7lb"
client< "SASL" "PLAIN LOGIN XOAUTH2 OAUTHBEARER"
client< "SIEVE" "fileinto"
client< "VERSION" "1.0"
client< "NOTIFY" "mailto"
client< OK "lb1 ready."
client> AUTHENTICATE "PLAIN" {16+}
client> AGFubmEAc2VjcmV0
client> LISTSCRIPTS
mx1 accepts
mx1> "SASL" "PLAIN"
mx1> "SIEVE" {8}
mx1> fileinto
mx1> "VERSION" "1.0"
mx1> OK
mx1< AUTHENTICATE "PLAIN" "AGFubmEAc2VjcmV0"
mx1> OK "in"
client< OK "Logged in."
mx1< LISTSCRIPTS
mx1> OK
client< OK
mx1 closes
client sees end
"""


@pytest.mark.parametrize("text", [POP3, SIEVE], ids=["pop3", "managesieve"])
async def test_a_conversation_at_every_split(text: str) -> None:
    playbook = Playbook(text)
    async with Node(CONFIG) as node:
        await node.play(playbook)
        record = await node.record()
        assert (record.mailbox, record.user, record.mechanism) == ("anna@example.com", "anna", "plain")
        assert (record.pool, record.server, record.ended) == ("mail", "mx1", "ok")
        for split in playbook.splits():
            await node.play(playbook, split)


@pytest.mark.parametrize(
    ("protocol", "login", "answer"),
    [
        ("pop3", b"USER a\r\nPASS b\r\n", rb"-ERR [SYS/TEMP] *"),
        ("managesieve", b'AUTHENTICATE "PLAIN" "AGEAYg=="\r\n', rb"NO (TRYLATER) *"),
    ],
)
async def test_a_server_that_refuses_to_connect(protocol: str, login: bytes, answer: bytes) -> None:
    async with Node(CONFIG) as node:
        node.server("mx1").refuse()
        async with await node.connect(protocol) as client:
            await client.send(login)
            await client.expect_lines("...", answer.decode())
