"""Directories over HTTP: nginx's words, against a server that answers them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp.web
import pytest

from l7lb.core.directory import FOUND, Question
from l7lb.core.snapshot import Directory, HttpSource
from l7lb.routing.directory.http import HttpDirectory, escape, read_answer, request_headers
from l7lb.routing.directory.lookup import Lookup
from l7lb.routing.directory.source import Result


def login(address: bytes = b"anna@example.com", password: bytes = b"secret") -> Question:
    question = Question(address, b"anna", b"Anna@Example.com", "imap4", "192.0.2.7")
    question.password, question.mechanism, question.attempt, question.tls = password, "plain", 2, True
    return question


class Program:
    """Answers as ``headers`` says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.headers: dict[str, str] = {"Auth-Status": "OK", "Auth-Server": "192.0.2.1", "Auth-Port": "143"}
        self.status = 200
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.port = 0

    async def answer(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        self.asked.append(dict(request.headers))
        await self.goes_on.wait()
        return aiohttp.web.Response(status=self.status, headers=self.headers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/auth"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Program]:
        application = aiohttp.web.Application()
        application.router.add_get("/auth", self.answer)
        runner = aiohttp.web.AppRunner(application, shutdown_timeout=0.0)
        await runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await aiohttp.web.SockSite(runner, sock).start()
        try:
            yield self
        finally:
            self.goes_on.set()
            await runner.cleanup()


@asynccontextmanager
async def opened(program: Program, **more: object) -> AsyncIterator[HttpDirectory]:
    settings = {"headers": (("X-Key", "k"),), "timeout": 5.0, **more}
    directory = HttpDirectory(HttpSource(url=program.url, **settings), time.monotonic)  # type: ignore[arg-type]
    try:
        yield directory
    finally:
        await directory.close()


# --- the words ----------------------------------------------------------------------------------------------------------


def test_what_a_login_becomes() -> None:
    assert request_headers(login(password=b'pa ss"%\xc3\xa4\r\nX: y')) == {
        "Auth-Method": "plain",
        "Auth-User": "Anna@Example.com",
        "Auth-Pass": "pa%20ss%22%25%C3%A4%0D%0AX:%20y",
        "Auth-Protocol": "imap",
        "Auth-Login-Attempt": "2",
        "Client-IP": "192.0.2.7",
        "Auth-SSL": "on",
        "Auth-Address": "anna@example.com",
    }


@pytest.mark.parametrize(
    ("mechanism", "word"), [("", "plain"), ("login", "plain"), ("external", "external"), ("xoauth2", "xoauth2")]
)
def test_mechanisms_have_nginxs_names(mechanism: str, word: str) -> None:
    question = login()
    question.mechanism = mechanism
    assert request_headers(question)["Auth-Method"] == word


@pytest.mark.parametrize(
    ("protocol", "word"),
    [("pop3", "pop3"), ("submission", "smtp"), ("smtp", "smtp"), ("lmtp", "lmtp"), ("managesieve", "sieve")],
)
def test_protocols_have_nginxs_names(protocol: str, word: str) -> None:
    question = login()
    question.protocol = protocol
    assert request_headers(question)["Auth-Protocol"] == word


def test_what_a_recipient_becomes() -> None:
    headers = request_headers(Question(b"anna@example.com", login=b"Anna+x@Example.com", protocol="smtp"))
    assert headers["Auth-Method"] == "none"
    assert headers["Auth-SMTP-To"] == "RCPT TO:<Anna+x@Example.com>"
    assert headers["Auth-Pass"] == ""
    assert "Auth-SSL" not in headers


def test_nothing_that_was_typed_begins_a_new_header() -> None:
    every = bytes(range(256))
    assert escape(every).isprintable()
    assert " " not in escape(every)


OK = {"Auth-Status": "OK"}


@pytest.mark.parametrize(
    ("headers", "server"),
    [
        ({**OK, "Auth-Server": "192.0.2.1", "Auth-Port": "143"}, "192.0.2.1:143"),
        ({**OK, "Auth-Server": "2001:db8::1", "Auth-Port": "143"}, "[2001:db8::1]:143"),
        ({**OK, "Auth-Server": "mx1"}, "mx1"),
        (OK, ""),
    ],
)
def test_where_the_mailbox_lives(headers: dict[str, str], server: str) -> None:
    result = read_answer(200, headers, True)
    assert (result.status, result.lasting) == (FOUND, True)
    assert result.entry is not None
    assert result.entry.server == server


def test_other_credentials_are_used_and_not_remembered() -> None:
    result = read_answer(200, {**OK, "Auth-User": "anna*master", "Auth-Pass": "p w", "Auth-Mailbox": "anna"}, True)
    assert result.entry is not None
    assert (result.entry.user, result.entry.password, result.entry.mailbox) == (b"anna*master", b"p w", b"anna")
    assert result.entry.proven
    assert not result.lasting
    result = read_answer(200, {**OK, "Auth-Pass": "p w"}, False)
    assert result.entry is not None
    assert not result.entry.proven  # it has not been asked about any password
    result = read_answer(200, {**OK, "Auth-User": "anna"}, True)
    assert result.entry is not None
    assert (result.entry.user, result.entry.mailbox, result.lasting) == (b"anna", b"anna", True)


@pytest.mark.parametrize(
    ("status", "headers", "is_login", "expected", "wait"),
    [
        (200, {"Auth-Status": "Invalid login or password", "Auth-Wait": "3"}, True, "refused", 3.0),
        (200, {"Auth-Status": "No such user", "Auth-Error-Code": "550 5.1.1"}, False, "missing", 0.0),
        (200, {"Auth-Status": "Try later", "Auth-Error-Code": "451 4.3.0"}, True, "failed", 0.0),
        (200, {"Auth-Status": "Try later", "Auth-Error-Code": "451 4.3.0"}, False, "failed", 0.0),
        (200, {"Auth-Status": "WAIT", "Auth-Wait": "5"}, True, "failed", 5.0),
        (200, {"Auth-Status": "no", "Auth-Wait": "99999"}, True, "refused", 60.0),
        (200, {"Auth-Status": "no", "Auth-Wait": "-1"}, True, "refused", 0.0),
        (200, {}, True, "failed", 0.0),
        (500, OK, True, "failed", 0.0),
        (302, OK, True, "failed", 0.0),
        (404, OK, False, "failed", 0.0),
        (200, {**OK, "Auth-Server": "a", "Auth-Port": "imap"}, True, "failed", 0.0),
    ],
)
def test_refusals_and_failures(
    status: int, headers: dict[str, str], is_login: bool, expected: str, wait: float
) -> None:
    result = read_answer(status, headers, is_login)
    assert (result.status, result.wait, result.entry) == (expected, wait, None)


# --- the wire -----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_question_and_its_answer() -> None:
    async with Program().running() as program, opened(program) as directory:
        result = await directory.find(login())
        assert result.entry is not None
        assert result.entry.server == "192.0.2.1:143"
        (asked,) = program.asked
        assert (asked["Auth-User"], asked["Auth-Pass"], asked["X-Key"]) == ("Anna@Example.com", "secret", "k")


@pytest.mark.asyncio
async def test_a_program_that_hangs_fails_in_time_and_is_left_alone() -> None:
    async with Program().running() as program, opened(program, timeout=0.2) as directory:
        program.goes_on.clear()
        result = await directory.find(login())
        assert (result.status, "no answer within 0.2 s" in result.why) == ("failed", True)
        result = await directory.find(login())
        assert "is left alone" in result.why
        assert len(program.asked) == 1


@pytest.mark.asyncio
async def test_a_program_that_is_not_there_is_a_failure() -> None:
    program = Program()
    async with program.running():
        pass
    async with opened(program) as directory:
        assert (await directory.find(login())).status == "failed"


@pytest.mark.asyncio
async def test_who_speaks_no_http_is_a_failure() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK IMAP4rev1 ready\r\n" * 10)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    program = Program()
    program.port = server.sockets[0].getsockname()[1]
    async with opened(program) as directory:
        assert (await directory.find(login())).status == "failed"
    server.close()


@pytest.mark.asyncio
async def test_only_the_very_same_question_has_a_remembered_answer() -> None:
    async with Program().running() as program, opened(program) as directory:
        one = Lookup(Directory(name="programs", source=HttpSource(url=program.url)), directory)

        async def ask(question: Question) -> Result:
            return await one.find(question)

        assert (await ask(login())).status == "found"
        again = login()
        again.attempt = 3
        assert (await ask(again)).status == "found"
        assert len(program.asked) == 1
        program.headers = {"Auth-Status": "Invalid login or password"}
        assert (await ask(login(password=b"wrong"))).status == "refused"
        assert (await ask(login(password=b"wrong"))).status == "refused"
        assert len(program.asked) == 3  # it counts attempts
        elsewhere = login()
        elsewhere.client = "192.0.2.8"
        assert (await ask(elsewhere)).status == "refused"
        program.headers = {"Auth-Status": "OK", "Auth-Pass": "other"}
        assert (await ask(login(b"bert@example.com"))).status == "found"
        assert (await ask(login(b"bert@example.com"))).status == "found"
        assert len(program.asked) == 6
