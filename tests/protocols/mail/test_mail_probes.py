"""The mail protocols' health checks against servers that do as they are told."""

from __future__ import annotations

import asyncio
import base64
import importlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme

from l7lb.core.contracts import ProbeTls
from l7lb.core.errors import ProbeFailed
from l7lb.core.finding import Finding
from l7lb.core.snapshot import Address
from l7lb.protocols.mail import probing

pytestmark = pytest.mark.asyncio

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
CERTIFICATE = AUTHORITY.issue_cert("mx1.example.com", key_type=trustme.KeyType.ECDSA)
PLAIN = base64.b64encode(b"\0ann\0se cret").decode()


@dataclass
class Script:
    """What a server says: its greeting, and its answer to each command by the words it begins with.

    ``GO`` in an answer is where the handshake begins, behind what stands before it; ``again`` is said after it.
    """

    greeting: str
    answers: dict[str, str]
    again: str = ""
    tls_first: bool = False
    piece: int = 0
    behind: bytes = b""  # the consent to TLS
    heard: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.tls_first:
                await writer.start_tls(server_context())
            await self.say(writer, self.greeting)
            while line := (await reader.readline()).decode().rstrip("\r\n"):
                self.heard.append(line)
                answer = next(text for begins, text in self.answers.items() if line.startswith(begins))
                if answer == "CLOSE":
                    break
                await self.say(writer, answer.removesuffix("GO"))
                if answer.endswith("GO"):
                    writer.write(self.behind)
                    await writer.start_tls(server_context())
                    await self.say(writer, self.again)
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def say(self, writer: asyncio.StreamWriter, text: str) -> None:
        data = text.encode()
        for start in range(0, len(data), self.piece or len(data) or 1):
            writer.write(data[start : start + (self.piece or len(data))])
            await writer.drain()
            await asyncio.sleep(0)


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(context)
    return context


def tls(mode: str, name: str = "mx1.example.com") -> ProbeTls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return ProbeTls(context, name, mode)


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Address]:
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    try:
        yield Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
        probing._learned.clear()


async def probe(protocol: str, script: Script, timeout: float = 5.0, **settings: Any) -> str:
    module = importlib.import_module(f"l7lb.protocols.{protocol}.probe")
    async with serving(script) as address:
        return str(await module.probe(address, settings, timeout))


SIEVE = '"IMPLEMENTATION" {7}\r\nexample\r\n"SASL" "PLAIN"\r\n"SIEVE" "fileinto"\r\n"STARTTLS"\r\nOK "ready"\r\n'


def script(protocol: str, **values: Any) -> Script:
    """A server that is well."""
    made = {
        "imap4": Script(
            "* OK [CAPABILITY IMAP4rev1] ready\r\n",
            {
                "a CAP": "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\na OK done\r\n",
                "b STARTTLS": "b OK begin\r\nGO",
                "c CAP": "* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nc OK done\r\n",
                "d LOGIN": "* CAPABILITY IMAP4rev1\r\nd OK in\r\n",
                "e LOGOUT": "* BYE\r\ne OK\r\n",
            },
        ),
        "pop3": Script(
            "+OK ready\r\n",
            {"CAPA": "+OK\r\nUIDL\r\nSTLS\r\n.\r\n", "STLS": "+OK begin\r\nGO", "USER": "+OK\r\n", "PASS": "+OK\r\n",
             "QUIT": "+OK\r\n"},
        ),
        "managesieve": Script(
            SIEVE,
            {"STARTTLS": 'OK "begin"\r\nGO', "AUTHENTICATE": "OK\r\n", "LOGOUT": "OK\r\n"},
            again=SIEVE.replace('"STARTTLS"\r\n', ""),
        ),
        "smtp": Script(
            "220-mx1.example.com\r\n220 ESMTP\r\n",
            {"EHLO": "250-mx1\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250 SIZE 1000\r\n", "STARTTLS": "220 begin\r\nGO",
             "AUTH PLAIN": "235 in\r\n", "QUIT": "221 bye\r\n"},
        ),
        "lmtp": Script(
            "220 LMTP\r\n",
            {"LHLO": "250-mx1\r\n250 STARTTLS\r\n", "STARTTLS": "220 begin\r\nGO", "QUIT": "221 bye\r\n"},
        ),
    }[protocol]  # fmt: skip
    for name, value in values.items():
        if name == "answers":
            made.answers |= value
        else:
            setattr(made, name, value)
    return made


PROTOCOLS = ("imap4", "pop3", "managesieve", "smtp", "lmtp")
WORDS = {"imap4": "IMAP4rev1", "pop3": "+OK", "managesieve": "OK", "smtp": "220", "lmtp": "220"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("piece", [0, 1])
async def test_a_server_that_is_well(protocol: str, piece: int) -> None:
    one = script(protocol, piece=piece)
    assert await probe(protocol, one) == WORDS[protocol]
    assert one.heard[-1].endswith(("LOGOUT", "QUIT"))


async def test_an_smtp_servers_extensions_are_found() -> None:
    module = importlib.import_module("l7lb.protocols.smtp.probe")
    async with serving(script("smtp")) as address:
        found = await module.probe(address, {"tls": tls("starttls")}, 5.0)
    assert isinstance(found, Finding)
    assert found.offers == ("STARTTLS", "AUTH PLAIN", "SIZE 1000")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", ["starttls", "auto"])
@pytest.mark.parametrize("piece", [0, 1])
async def test_tls_on_request(protocol: str, mode: str, piece: int) -> None:
    one = script(protocol, piece=piece)
    assert await probe(protocol, one, tls=tls(mode)) == f"{WORDS[protocol]}, TLSv1.3"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_tls_from_the_first_byte_is_found_out_and_remembered(protocol: str) -> None:
    module = importlib.import_module(f"l7lb.protocols.{protocol}.probe")
    async with serving(script(protocol, tls_first=True)) as address:
        settings = {"tls": tls("implicit")}
        assert await module.probe(address, settings, 5.0) == f"{WORDS[protocol]}, TLSv1.3"
        settings = {"tls": tls("auto")}
        assert await module.probe(address, settings, 0.5) == f"{WORDS[protocol]}, TLSv1.3"
        assert probing._learned == {address: "implicit"}
        assert await module.probe(address, settings, 5.0) == f"{WORDS[protocol]}, TLSv1.3"


async def test_what_was_remembered_of_a_server_is_forgotten_when_it_fails() -> None:
    module = importlib.import_module("l7lb.protocols.pop3.probe")
    async with serving(script("pop3")) as address:
        probing._learned[address] = "implicit"
        with pytest.raises(ProbeFailed, match="TLS: wrong version number"):
            await module.probe(address, {"tls": tls("auto")}, 5.0)
        assert await module.probe(address, {"tls": tls("auto")}, 5.0) == "+OK, TLSv1.3"


@pytest.mark.parametrize("protocol", ["imap4", "pop3", "managesieve", "smtp"])
@pytest.mark.parametrize("mode", ["", "starttls"])
async def test_a_login(protocol: str, mode: str) -> None:
    one = script(protocol)
    settings = {"tls": tls(mode)} if mode else {}
    words = await probe(protocol, one, user="ann", password="se cret", **settings)
    assert words.endswith(", logged in")
    login = {
        "imap4": 'd LOGIN "ann" "se cret"',
        "pop3": "PASS se cret",
        "managesieve": f'AUTHENTICATE "PLAIN" "{PLAIN}"',
        "smtp": f"AUTH PLAIN {PLAIN}",
    }
    assert login[protocol] in one.heard


async def test_nobody_logs_in_to_lmtp() -> None:
    assert await probe("lmtp", script("lmtp"), user="ann", password="x") == "220"


REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("imap4", {"greeting": "* BYE too many\r\n"}, {}, r"greets with '\* BYE too many'"),
    ("imap4", {"greeting": "+OK pop3\r\n"}, {}, r"greets with '\+OK pop3'"),
    ("imap4", {"greeting": "\x1b[2J\r\n"}, {}, r"greets with '\?\[2J'"),
    ("imap4", {"greeting": "* PREAUTH hello\r\n"}, {"tls": tls("starttls")}, "greets with PREAUTH"),
    ("imap4", {"answers": {"a CAP": "a NO never\r\n"}}, {}, "CAPABILITY: NO never"),
    ("imap4", {"answers": {"a CAP": "* BYE now\r\n"}}, {}, r"CAPABILITY: \* BYE now"),
    ("imap4", {"answers": {"a CAP": "* CAPABILITY IMAP2\r\na OK\r\n"}}, {}, "has no IMAP4rev1"),
    ("imap4", {"answers": {"a CAP": "* CAPABILITY IMAP4rev1\r\na OK\r\n"}}, {"tls": tls("starttls")}, "no STARTTLS"),
    ("imap4", {"answers": {"d LOGIN": "d NO [UNAVAILABLE] x\r\n"}}, {"user": "a"}, r"LOGIN: NO \[UNAVAILABLE\] x"),
    ("pop3", {"greeting": "-ERR busy\r\n"}, {}, "greets with '-ERR busy'"),
    ("pop3", {"greeting": "+OKAY\r\n"}, {}, r"greets with '\+OKAY'"),
    ("pop3", {"answers": {"CAPA": "+OK\r\nUIDL\r\n.\r\n"}}, {"tls": tls("starttls")}, "offers no STLS"),
    ("pop3", {"answers": {"CAPA": "-ERR\r\n", "STLS": "-ERR no\r\n"}}, {"tls": tls("starttls")}, "STLS: -ERR no"),
    ("pop3", {"answers": {"PASS": "-ERR [AUTH] no\r\n"}}, {"user": "a"}, r"PASS: -ERR \[AUTH\] no"),
    ("managesieve", {"greeting": 'BYE "full"\r\n'}, {}, 'greeting: BYE "full"'),
    ("managesieve", {"greeting": "* OK imap\r\n"}, {}, r"greeting: '\* OK imap'"),
    ("managesieve", {"greeting": "OK\r\n"}, {}, "no SIEVE"),
    ("managesieve", {"greeting": '"SIEVE" ""\r\nOK\r\n'}, {"tls": tls("starttls")}, "offers no STARTTLS"),
    ("managesieve", {"greeting": '"A" {99999}\r\n'}, {}, "a literal of more than 8192 bytes"),
    ("managesieve", {"answers": {"AUTHENTICATE": "NO\r\n"}}, {"user": "a"}, "AUTHENTICATE: NO"),
    ("smtp", {"greeting": "554 no\r\n"}, {}, "greets with '554 no'"),
    ("smtp", {"greeting": "220-a\r\n250 b\r\n"}, {}, "greeting: no reply of SMTP: '250 b'"),
    ("smtp", {"greeting": "hello\r\n"}, {}, "no reply of SMTP: 'hello'"),
    ("smtp", {"answers": {"EHLO": "421 shutting down\r\n"}}, {}, "EHLO: 421 shutting down"),
    ("smtp", {"answers": {"EHLO": "250 mx1\r\n"}}, {"tls": tls("starttls")}, "offers no STARTTLS"),
    ("smtp", {"answers": {"STARTTLS": "454 later\r\n"}}, {"tls": tls("starttls")}, "STARTTLS: 454 later"),
    ("smtp", {"answers": {"AUTH": "535 no\r\n", "AUTH PLAIN": "535 no\r\n"}}, {"user": "a"}, "AUTH: 535 no"),
    ("lmtp", {"answers": {"LHLO": "500 what\r\n"}}, {}, "LHLO: 500 what"),
]


@pytest.mark.parametrize(("protocol", "values", "settings", "why"), REFUSALS)
async def test_a_server_that_is_not_well(
    protocol: str, values: dict[str, Any], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ProbeFailed, match=why):
        await probe(protocol, script(protocol, **values), **settings)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_silence_and_an_end_are_told_with_the_step_that_met_them(protocol: str) -> None:
    with pytest.raises(ProbeFailed, match=r"greeting: no answer within 0\.1 s"):
        await probe(protocol, script(protocol, greeting=""), timeout=0.1)
    command = {"imap4": "a CAP", "pop3": "CAPA", "managesieve": "STARTTLS", "smtp": "EHLO", "lmtp": "LHLO"}[protocol]
    step = {"imap4": "CAPABILITY", "managesieve": "STARTTLS"}.get(protocol, command)
    settings = {"tls": tls("starttls")}
    with pytest.raises(ProbeFailed, match=f"{step}: no answer within"):
        await probe(protocol, script(protocol, answers={command: ""}), timeout=0.1, **settings)
    with pytest.raises(ProbeFailed, match=f"{step}: closed"):
        await probe(protocol, script(protocol, answers={command: "CLOSE"}), **settings)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_endless_answers_are_cut(protocol: str) -> None:
    with pytest.raises(ProbeFailed, match="a line of more than 8192 bytes"):
        await probe(protocol, script(protocol, greeting="x" * 100_000))
    endless = {"imap4": "* x\r\n", "pop3": "+OK\r\n" + "x\r\n" * 300, "smtp": "250-x\r\n", "lmtp": "250-x\r\n"}
    if protocol in endless:
        command = {"imap4": "a CAP", "pop3": "CAPA", "smtp": "EHLO", "lmtp": "LHLO"}[protocol]
        with pytest.raises(ProbeFailed, match="more than 200 lines"):
            await probe(protocol, script(protocol, answers={command: endless[protocol] * 300}))
    else:
        with pytest.raises(ProbeFailed, match="more than 200 lines"):
            await probe(protocol, script(protocol, greeting='"A" "b"\r\n' * 300))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_tls_that_is_somebody_elses_or_has_something_in_front(protocol: str) -> None:
    with pytest.raises(ProbeFailed, match="TLS: Hostname mismatch"):
        await probe(protocol, script(protocol), tls=tls("starttls", "mx2.example.com"))
    with pytest.raises(ProbeFailed, match=r"behind its consent|TLS: "):
        await probe(protocol, script(protocol, behind=b"injected\r\n"), tls=tls("starttls"))


async def test_a_server_that_is_not_there() -> None:
    module = importlib.import_module("l7lb.protocols.imap4.probe")
    async with serving(script("imap4")) as address:
        pass
    with pytest.raises(ProbeFailed, match="connection refused"):
        await module.probe(address, {}, 5.0)


async def test_a_check_begins_with_a_proxy_header_where_the_server_wants_one() -> None:
    one = script("pop3", answers={"PROXY TCP4 127.0.0.1 127.0.0.1 ": ""})
    assert await probe("pop3", one, send_proxy="v1") == "+OK"
    assert one.heard[0].startswith("PROXY TCP4")
