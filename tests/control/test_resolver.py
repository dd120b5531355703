from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import structlog

from l7lb.control import resolver as module
from l7lb.control.node import NodeState
from l7lb.control.resolver import Found, LookupFailed, Resolver, SystemLookup, in_hosts, ordered

pytestmark = pytest.mark.asyncio
Make = Callable[..., Any]

# name and type: time to live and addresses, or a response code, or None for no answer at all
Zone = dict[tuple[str, str], tuple[int, list[str]] | dns.rcode.Rcode | None]


class Names(asyncio.DatagramProtocol):
    """A name server over UDP that knows one small zone."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        answer = self.zone.get((question.name.to_text(omit_final_dot=True), kind), dns.rcode.NXDOMAIN)
        if answer is None:
            return
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if isinstance(answer, tuple):
            if answer[1]:
                response.answer.append(dns.rrset.from_text_list(question.name, answer[0], "IN", kind, answer[1]))
        else:
            response.set_rcode(answer)
        self.transport.sendto(response.to_wire(), addr)


@asynccontextmanager
async def names(zone: Zone, hosts: Path = Path("/nonexistent")) -> AsyncIterator[SystemLookup]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Names(zone), ("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    resolver.retry_servfail = False
    try:
        yield SystemLookup(hosts, resolver)
    finally:
        transport.close()
        await asyncio.sleep(0)


# --- one look-up --------------------------------------------------------------------------------------------------


async def test_both_families_are_found_with_the_shorter_life() -> None:
    zone: Zone = {
        ("app.test", "A"): (60, ["10.0.0.6", "10.0.0.5"]),
        ("app.test", "AAAA"): (30, ["fd00::1"]),
    }
    async with names(zone) as lookup:
        assert await lookup("app.test") == Found(("10.0.0.5", "10.0.0.6", "fd00::1"), 30.0)


async def test_one_family_alone_is_enough() -> None:
    async with names({("app.test", "A"): (60, ["10.0.0.5"]), ("app.test", "AAAA"): (60, [])}) as lookup:
        assert await lookup("app.test") == Found(("10.0.0.5",), 60.0)


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        ({}, "the name does not exist"),
        ({("app.test", "A"): (60, []), ("app.test", "AAAA"): (60, [])}, "the name has no address"),
        ({("app.test", kind): dns.rcode.SERVFAIL for kind in ("A", "AAAA")}, "no name server gave an answer"),
        ({("app.test", kind): None for kind in ("A", "AAAA")}, "no name server answered within 0.2 s"),
    ],
)
async def test_a_failure_says_why(zone: Zone, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIFETIME", 0.2)
    async with names(zone) as lookup:
        with pytest.raises(LookupFailed) as caught:
            await lookup("app.test")
    assert str(caught.value) == words
    assert caught.value.partial == ()


async def test_half_an_answer_is_a_failure_that_tells_what_it_has() -> None:
    zone: Zone = {("app.test", "A"): (60, ["10.0.0.5"]), ("app.test", "AAAA"): dns.rcode.SERVFAIL}
    async with names(zone) as lookup:
        with pytest.raises(LookupFailed) as caught:
            await lookup("app.test")
    assert caught.value.partial == ("10.0.0.5",)


async def test_the_hosts_file_comes_first(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "# a comment\n10.9.9.9 App.test other\n10.9.9.8\tapp.test # here too\nnonsense app.test\n10.9.9.7\n"
    )
    async with names({("app.test", "A"): (60, ["10.0.0.5"])}, hosts) as lookup:
        assert (await lookup("app.test")).addresses == ("10.9.9.8", "10.9.9.9")
        assert (await lookup("localhost")).addresses == ("127.0.0.1", "::1")


async def test_a_hosts_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert in_hosts(tmp_path, "app.test") == ()
    (tmp_path / "odd").write_bytes(b"\xff\xfe 10.0.0.1 app.test\n10.0.0.2 app.test")
    assert in_hosts(tmp_path / "odd", "app.test.")[-1] == "10.0.0.2"


async def test_addresses_are_ordered_and_bounded() -> None:
    many = [f"10.0.{number // 256}.{number % 256}" for number in range(200)]
    assert ordered(["::2", "::0001", "10.0.0.2", "10.0.0.1", "10.0.0.1", "no"]) == (
        "10.0.0.1",
        "10.0.0.2",
        "::1",
        "::2",
    )
    assert len(ordered(many)) == module.ADDRESSES


# --- the node's names ---------------------------------------------------------------------------------------------


class Scripted:
    """A look-up that answers as the test says."""

    def __init__(self, **answers: Found | str) -> None:
        self.answers: dict[str, Found | str] = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, name: str) -> Found:
        self.asked.append(name)
        await asyncio.sleep(0)
        answer = self.answers[name]
        if isinstance(answer, str):
            raise LookupFailed(answer)
        return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TTL_FLOOR", 0.01)
    monkeypatch.setattr(module, "RETRY_CEILING", 0.05)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def addresses(node: NodeState) -> list[str]:
    return [server.name for server in node.effective().pools[0].servers]


async def test_names_are_known_when_start_returns_and_followed_after(
    make_pool: Make, make_snapshot: Make, make_server: Make
) -> None:
    node = NodeState(make_snapshot(make_pool("web", make_server("app", "app.test:80"))))
    lookup = Scripted(app_test=Found(("10.0.0.5",), 0.01))
    resolver = Resolver(node, lookup)
    with structlog.testing.capture_logs() as logs:
        await resolver.start()
        try:
            assert addresses(node) == ["app@10.0.0.5"]
            lookup.answers["app.test"] = Found(("10.0.0.5", "10.0.0.6"), 0.01)
            await until(lambda: addresses(node) == ["app@10.0.0.5", "app@10.0.0.6"])
            lookup.answers["app.test"] = "the name does not exist"
            times = len(lookup.asked)
            await until(lambda: len(lookup.asked) > times + 3)
            assert addresses(node) == ["app@10.0.0.5", "app@10.0.0.6"]
            lookup.answers["app.test"] = Found(("10.0.0.6",), 0.01)
            await until(lambda: addresses(node) == ["app@10.0.0.6"])
        finally:
            await resolver.stop()
    assert [entry["event"] for entry in logs] == [
        "web/app is at 10.0.0.5",
        "web/app is at 10.0.0.5, 10.0.0.6",
        "web/app is not resolved: app.test: the name does not exist; it keeps 2 known address(es)",
        "web/app is at 10.0.0.6",
    ]


async def test_an_unresolved_name_is_absent_and_tried_again(
    make_pool: Make, make_snapshot: Make, make_server: Make
) -> None:
    node = NodeState(make_snapshot(make_pool("web", make_server("app", "app.test:80"), "web2")))
    lookup = Scripted(app_test="no name server gave an answer")
    resolver = Resolver(node, lookup)
    await resolver.start()
    try:
        assert addresses(node) == ["web2"]
        assert node.absent[0].why == "app.test: no name server gave an answer"
        lookup.answers["app.test"] = Found(("10.0.0.5",), 60.0)
        await until(lambda: "app@10.0.0.5" in addresses(node))
    finally:
        await resolver.stop()


async def test_a_reload_brings_and_takes_names(make_pool: Make, make_snapshot: Make, make_server: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", make_server("app", "app.test:80"))))
    lookup = Scripted(app_test=Found(("10.0.0.5",), 60.0), new_test=Found(("10.0.0.7",), 60.0))
    resolver = Resolver(node, lookup)
    await resolver.start()
    try:
        node.reload(make_snapshot(make_pool("web", make_server("app", "new.test:80"))))
        await until(lambda: addresses(node) == ["app@10.0.0.7"])
        times = len(lookup.asked)
        node.reload(make_snapshot(make_pool("web", "web1")))
        await asyncio.sleep(0.03)
        assert len(lookup.asked) == times
    finally:
        await resolver.stop()


async def test_a_look_up_that_hangs_does_not_hold_the_start(
    make_pool: Make, make_snapshot: Make, make_server: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIFETIME", -0.95)

    async def hang(name: str) -> Found:
        await asyncio.Event().wait()
        raise AssertionError

    node = NodeState(make_snapshot(make_pool("web", make_server("app", "app.test:80"))))
    resolver = Resolver(node, hang)
    async with asyncio.timeout(5):
        await resolver.start()
        await resolver.stop()
    assert addresses(node) == []
