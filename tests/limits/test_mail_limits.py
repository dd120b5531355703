"""Rate limits of mail: logins by mailbox, messages by source, in each protocol's own words."""

from __future__ import annotations

import asyncio

import pytest

from l7lb.testing.node import Node

pytestmark = pytest.mark.asyncio

CONFIGURATION = """\
addresses: {recipient_delimiter: "+", default_domain: example.com}
listeners:
  - name: imap
    protocol: imap4
    bind: ["127.0.0.1:0"]
    login: {cleartext: always}
    limit: {key: mailbox, rate: 1/h, burst: 2}
    routes: [{pool: mail}]
  - name: mx
    protocol: smtp
    bind: ["127.0.0.1:0"]
    routes:
      - {match: {address: "*@example.com"}, limit: {key: source, rate: 1/h}, pool: mail}
pools:
  mail:
    persistence: mailbox
    client_address: {smtp: xclient}
    servers: [{name: a, host: 127.0.0.1, ports: {imap4: 143, smtp: 25}}]
"""


async def talk(node: Node, listener: str, *lines: str) -> list[str]:
    """The last line of each answer."""
    address = node.address(listener)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    answers = []
    try:
        await reader.readline()
        for line in lines:
            writer.write(line.encode() + b"\r\n")
            answer = (await reader.readline()).decode().strip()
            while answer.startswith(("* ", "250-")):
                answer = (await reader.readline()).decode().strip()
            answers.append(answer)
    finally:
        writer.close()
    return answers


async def test_logins_are_limited_by_mailbox_whatever_was_typed() -> None:
    async with Node(CONFIGURATION) as node:
        node.down("mail/a")
        first = await talk(node, "imap", "a LOGIN Anna x", "b LOGIN anna+lists@example.com x", "c LOGIN anna x")
        assert [answer.split("]")[0] for answer in first] == [
            "a NO [UNAVAILABLE",
            "b NO [UNAVAILABLE",
            "c NO [LIMIT",
        ]
        assert (await talk(node, "imap", "a LOGIN ben x"))[0].startswith("a NO [UNAVAILABLE]")


async def test_messages_are_limited_by_the_rule_that_matches() -> None:
    async with Node(CONFIGURATION) as node:
        node.down("mail/a")
        dialogue = ("EHLO client.example", "MAIL FROM:<x@client.example>", "RCPT TO:<anna@example.com>")
        assert (await talk(node, "mx", *dialogue))[-1].startswith("4")
        await node.until(lambda: node.records)
        assert all(record.ended != "rate-limited@queue" for record in node.records)
        again = await talk(node, "mx", *dialogue)
        assert again[-1].startswith("4")
        await node.until(lambda: [record.ended for record in node.records].count("rate-limited@queue") >= 1)
