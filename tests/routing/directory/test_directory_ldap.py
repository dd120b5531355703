"""LDAP servers that misbehave at every step, filters, and what entries mean: scripted, so that it is exact."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.core.directory import Question
from l7lb.core.snapshot import LdapSource
from l7lb.routing.directory.ldap import LdapDirectory, escape, fill, judge
from l7lb.routing.directory.ldap_line import Found
from l7lb.routing.directory.source import Result

# --- a few words of LDAP (RFC 4511) -----------------------------------------------------------------------------------


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + body


def result(tag: int, code: int = 0, text: bytes = b"") -> bytes:
    return tlv(tag, tlv(0x0A, bytes([code])), tlv(0x04, b""), tlv(0x04, text))


def found_entry(name: bytes, **attributes: bytes) -> bytes:
    listed = [
        tlv(0x30, tlv(0x04, attribute.encode()), tlv(0x31, tlv(0x04, value))) for attribute, value in attributes.items()
    ]
    return tlv(0x64, tlv(0x04, name), tlv(0x30, *listed))


BOUND, DONE = result(0x61), result(0x65)
ANNA = found_entry(b"uid=anna,dc=example", uid=b"anna", mailHost=b"mx1")
Step = Callable[[bytes, int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


async def request(reader: asyncio.StreamReader) -> tuple[int, int]:
    """The next request's number and tag."""
    head = await reader.readexactly(2)
    size = head[1]
    if size & 0x80:
        size = int.from_bytes(await reader.readexactly(size & 0x7F), "big")
    body = await reader.readexactly(size)
    width = body[1]
    return int.from_bytes(body[2 : 2 + width], "big"), body[2 + width]


def message(number: int, operation: bytes) -> bytes:
    width = max(1, (number.bit_length() + 8) // 8)
    return tlv(0x30, tlv(0x02, number.to_bytes(width, "big")), operation)


class Server:
    """A scripted LDAP server: ``answers`` maps a request's tag to the operations that answer it."""

    def __init__(self) -> None:
        self.answers: dict[int, list[bytes]] = {0x60: [BOUND], 0x63: [ANNA, DONE]}
        self.hangs_at: int | None = None
        self.closes_at: int | None = None
        self.drips_at: int | None = None
        self.garbage_at: int | None = None
        self.connections = 0
        self.heard: list[int] = []
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while True:
                number, tag = await request(reader)
                self.heard.append(tag)
                if tag == 0x42:
                    break
                if tag == self.hangs_at:
                    await asyncio.Event().wait()
                if tag == self.closes_at:
                    break
                if tag == self.garbage_at:
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    await asyncio.Event().wait()
                for operation in self.answers[tag]:
                    data = message(number, operation)
                    if tag == self.drips_at:
                        for octet in data:
                            writer.write(bytes([octet]))
                            await writer.drain()
                            await asyncio.sleep(0.1)
                    writer.write(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self.talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await asyncio.sleep(0)


@asynccontextmanager
async def opened(
    *servers: Server, clock: Callable[[], float] = time.monotonic, **more: object
) -> AsyncIterator[LdapDirectory]:
    settings = {
        "base": "dc=example",
        "filter": "(mail={address})",
        "attributes": {"mailbox": "uid", "server": "mailHost"},
        "bind_dn": "cn=reader",
        "bind_password": b"secret",
        "timeout": 1.0,
        **more,
    }
    directory = LdapDirectory(LdapSource(urls=tuple(one.url for one in servers), **settings), clock)  # type: ignore[arg-type]
    try:
        yield directory
    finally:
        await directory.close()


async def find(directory: LdapDirectory) -> Result:
    return await directory.find(Question(b"anna@example.com"))


def server_of(answer: Result) -> str:
    assert answer.entry is not None, answer.why
    return answer.entry.server


# --- servers that misbehave ---------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("trouble", ["hangs_at", "closes_at", "drips_at", "garbage_at"])
@pytest.mark.parametrize("step", [0x60, 0x63])
async def test_any_trouble_at_any_step_leads_to_the_next_server_in_time(trouble: str, step: int) -> None:
    async with Server().running() as sick, Server().running() as well:
        setattr(sick, trouble, step)
        well.answers[0x63] = [found_entry(b"uid=anna", uid=b"anna", mailHost=b"mx2"), DONE]
        async with opened(sick, well) as directory:
            began = time.monotonic()
            assert server_of(await find(directory)) == "mx2"
            assert time.monotonic() - began < 4.0
            assert sick.connections == 1
            assert server_of(await find(directory)) == "mx2"
            assert sick.connections == 1  # it is left alone


@pytest.mark.asyncio
async def test_threads_come_back_from_a_server_that_hangs() -> None:
    now = [0.0]
    async with Server().running() as server:
        server.hangs_at = 0x63
        async with opened(server, connections=2, clock=lambda: now[0]) as directory:
            for _ in range(6):
                assert (await find(directory)).status == "failed"
                now[0] += 100.0
            server.hangs_at = None
            assert server_of(await find(directory)) == "mx1"
            async with asyncio.timeout(5.0):
                while len(directory._lanes._idle) < len(directory._lanes._all):
                    await asyncio.sleep(0.01)
            assert len(directory._lanes._all) <= 2


@pytest.mark.asyncio
async def test_a_kept_connection_that_the_server_closed_is_replaced_unseen() -> None:
    async with Server().running() as server, opened(server) as directory:
        assert server_of(await find(directory)) == "mx1"
        for writer in list(server._open):
            writer.transport.abort()
        assert server_of(await find(directory)) == "mx1"
        assert server.connections == 2
        assert directory._rests[0].why == ""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("code", "aside"),
    [(51, True), (52, True), (53, True), (1, False), (32, False), (50, False), (10, False), (3, False)],
)
async def test_a_server_that_says_no_is_never_believed_to_miss_an_entry(code: int, aside: bool) -> None:
    async with Server().running() as server:
        server.answers[0x63] = [result(0x65, code, b"not now")]
        async with opened(server) as directory:
            answer = await find(directory)
            assert answer.status == "failed"
            assert "not now" in answer.why
            assert bool(directory._rests[0].why) is aside


@pytest.mark.asyncio
async def test_references_are_no_entries() -> None:
    reference = tlv(0x73, tlv(0x04, b"ldap://elsewhere/dc=example"))
    async with Server().running() as server:
        server.answers[0x63] = [ANNA, reference, DONE]
        async with opened(server) as directory:
            assert server_of(await find(directory)) == "mx1"
            server.answers[0x63] = [reference, DONE]
            assert (await find(directory)).status == "missing"
        assert server.connections == 1


@pytest.mark.asyncio
async def test_a_size_limit_means_that_there_are_several() -> None:
    async with Server().running() as server:
        server.answers[0x63] = [ANNA, result(0x65, 4)]
        async with opened(server) as directory:
            answer = await find(directory)
            assert (answer.status, "several" in answer.why) == ("failed", True)


@pytest.mark.asyncio
async def test_one_question_tries_a_sick_server_for_all() -> None:
    now = [0.0]
    async with Server().running() as server:
        server.closes_at = 0x60
        async with opened(server, clock=lambda: now[0]) as directory:
            assert (await find(directory)).status == "failed"
            assert server.connections == 1
            await find(directory)
            assert server.connections == 1
            now[0] += 1.5
            await asyncio.gather(*(find(directory) for _ in range(5)))
            assert server.connections == 2
            now[0] += 1.5
            await find(directory)
            assert server.connections == 2  # the rest has doubled
            now[0] += 1.0
            server.closes_at = None
            assert server_of(await find(directory)) == "mx1"
            assert server_of(await find(directory)) == "mx1"


@pytest.mark.asyncio
async def test_who_gives_up_frees_the_lane() -> None:
    async with Server().running() as server:
        server.hangs_at = 0x63
        async with opened(server, connections=1, timeout=30.0) as directory:
            first, second = asyncio.ensure_future(find(directory)), asyncio.ensure_future(find(directory))
            async with asyncio.timeout(5.0):
                while 0x63 not in server.heard:
                    await asyncio.sleep(0.005)
            second.cancel()
            first.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
            server.hangs_at = None
            async with asyncio.timeout(5.0):
                assert server_of(await find(directory)) == "mx1"


@pytest.mark.asyncio
async def test_no_bind_without_a_name_and_none_without_a_password() -> None:
    async with Server().running() as server:
        async with opened(server, bind_dn="", bind_password=b"") as directory:
            assert server_of(await find(directory)) == "mx1"
            assert server.heard == [0x63]
        with pytest.raises(ValueError, match="empty"):
            async with opened(server, bind_password=b""):
                pass
        assert server.connections == 1


# --- filters and entries ------------------------------------------------------------------------------------------------


@given(st.binary())
def test_an_escaped_value_has_no_sign_of_a_filter_and_can_be_read_back(value: bytes) -> None:
    text = escape(value)
    assert not set(text) & set("()*&|!=<>~\0 ")
    assert text.isascii()
    back = re.sub(rb"\\([0-9a-f]{2})", lambda code: bytes([int(code[1], 16)]), text.encode())
    assert back == value


def test_what_is_put_in_is_not_filled_again() -> None:
    question = Question(b"{user}@x", b"{address}")
    assert fill("(|(a={address})(b={user}))", question) == r"(|(a=\7buser\7d@x)(b=\7baddress\7d))"


ATTRIBUTES = {
    "mailbox": "uid",
    "server": "mailHost",
    "user": "login",
    "password": "key",
    "master_user": "m",
    "master_password": "mp",
}


def test_attributes_fill_the_entry_whatever_their_case() -> None:
    values = {
        "uid": [b"Anna"],
        "mailhost": [b" mx1 "],
        "login": [b"anna2"],
        "key": [b"k"],
        "m": [b"master"],
        "mp": [b"p"],
    }
    answer = judge(Found([("uid=anna", values)]), ATTRIBUTES)
    entry = answer.entry
    assert answer.status == "found"
    assert entry is not None
    assert (entry.mailbox, entry.server, entry.user, entry.password) == (b"Anna", "mx1", b"anna2", b"k")
    assert (entry.master_user, entry.master_password) == (b"master", b"p")


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (Found([]), "missing"),
        (Found([], more=True), "failed"),
        (Found([("a", {})]), "found"),
        (Found([("a", {})], more=True), "failed"),
        (Found([("a", {}), ("b", {})]), "failed"),
        (Found([("a", {"uid": [b"x", b"y"]})]), "failed"),
    ],
)
def test_exactly_one_entry_is_an_answer(found: Found, status: str) -> None:
    assert judge(found, ATTRIBUTES).status == status
