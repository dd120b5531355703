from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from l7lb.control import probes
from l7lb.control.probes import HttpProbe, ProbeUnavailable
from l7lb.core.contracts import ProtocolSpec
from l7lb.core.errors import ProbeFailed
from l7lb.core.proxy_protocol.reading import HeaderFault, HeaderReader
from l7lb.core.proxy_protocol.writing import UNKNOWN, write_local
from l7lb.core.snapshot import Address, Health, Server

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def http_server(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[Address]:
    """A real aiohttp server on a free port."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Address(host="127.0.0.1", port=runner.addresses[0][1])
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[Address]:
    """A server that sends these bytes whatever it gets, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])


def unused() -> Address:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address(host="127.0.0.1", port=probe.getsockname()[1])


async def ask(address: Address, **settings: Any) -> str:
    probe = HttpProbe()
    try:
        return await probe(address, settings, 1.0)
    finally:
        await probe.close()


async def reason(address: Address, **settings: Any) -> str:
    with pytest.raises(ProbeFailed) as caught:
        await ask(address, **settings)
    return str(caught.value)


# --- http ---------------------------------------------------------------------------------------------------------


async def test_the_request_is_as_configured_and_on_its_own_connection() -> None:
    seen: list[web.BaseRequest] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request)
        return web.Response(status=204)

    async with http_server(handler) as address:
        settings = {
            "path": "/health?deep=%2e&x",
            "method": "HEAD",
            "host": "app.example.org",
            "headers": {"x-check": "1"},
            "expect": [[204, 204]],
        }
        assert await ask(address, **settings) == "status 204"
        assert await ask(address) == "status 204"
    first, second = seen
    assert (first.method, first.raw_path if hasattr(first, "raw_path") else str(first.rel_url)) == (
        "HEAD",
        "/health?deep=%2e&x",
    )
    assert (first.headers["Host"], first.headers["X-Check"]) == ("app.example.org", "1")
    assert "l7lb" in first.headers["User-Agent"]
    assert second.headers["Host"] == str(address)
    assert second.headers.get("Connection") == "close" or second.transport is not first.transport


@pytest.mark.parametrize(
    ("status", "expect", "words"),
    [
        (503, [[200, 299]], "status 503, expected 200-299"),
        (200, [[204, 204], [300, 301]], "status 200, expected 204, 300-301"),
        (404, None, "status 404, expected 200-399"),
    ],
)
async def test_a_status_out_of_range_is_bad(status: int, expect: Any, words: str) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    async with http_server(handler) as address:
        assert await reason(address, expect=expect) == words


async def test_redirections_are_not_followed() -> None:
    hits = []

    async def handler(request: web.BaseRequest) -> web.Response:
        hits.append(request.path)
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    async with http_server(handler) as address:
        assert await ask(address, expect=[[302, 302]]) == "status 302"
    assert hits == ["/"]


async def test_a_text_is_looked_for_in_the_first_part_of_the_body() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"all " + b"." * 70_000 if request.path == "/early" else b"." * 70_000)
        await response.write(b"all is well")
        return response

    async with http_server(handler) as address:
        assert await ask(address, path="/early", body="all .") == "status 200"
        assert "lacks 'all is well'" in await reason(address, path="/late", body="all is well")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", "not an HTTP answer"),
    ],
)
async def test_what_is_no_answer_is_bad(answer: bytes, words: str) -> None:
    async with raw_server(answer) as address:
        found = await reason(address)
        assert found.startswith(words)
        assert "\n" not in found


async def test_http_over_a_unix_socket_with_a_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 60)
    directory.mkdir(parents=True)
    from l7lb.core.unixpath import short_path

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(text=request.headers["Host"])

    listening = socket.socket(socket.AF_UNIX)
    with short_path(directory / "s.sock") as path:
        listening.bind(path)
    listening.listen()
    listening.setblocking(False)
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    try:
        address = Address(path=str(directory / "s.sock"))
        assert await ask(address, body="localhost") == "status 200"
        assert await probes.connect(address, {}, 1.0) == "connected"
    finally:
        await runner.cleanup()


async def test_ipv6() -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(text=request.headers["Host"])

    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "::1", 0).start()
    except OSError:
        await runner.cleanup()
        pytest.skip("no IPv6 here")
    try:
        address = Address(host="::1", port=runner.addresses[0][1])
        assert await ask(address, body=f"[::1]:{address.port}") == "status 200"
        assert await probes.connect(address, {}, 1.0) == "connected"
    finally:
        await runner.cleanup()


# --- tcp, and what both share -------------------------------------------------------------------------------------


async def test_a_refused_connection_says_so() -> None:
    assert await reason(unused()) == "connect refused"
    with pytest.raises(ProbeFailed, match=r"^connect refused$"):
        await probes.connect(unused(), {}, 1.0)


async def test_a_missing_unix_socket_says_so(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "none.sock"))
    with pytest.raises(ProbeFailed, match=r"^no such socket$"):
        await probes.connect(address, {}, 1.0)
    assert await reason(address) == "no such socket"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL])
async def test_the_nodes_own_trouble_is_not_the_servers(number: int) -> None:
    assert isinstance(probes.failed(OSError(number, "x")), ProbeUnavailable)
    assert not isinstance(probes.failed(OSError(errno.ECONNREFUSED, "x")), ProbeUnavailable)


async def test_a_port_of_its_own_can_be_checked() -> None:
    health = Health(kind="tcp", port=81)
    assert probes.target(Address(host="10.0.0.1", port=80), health) == Address(host="10.0.0.1", port=81)
    assert probes.target(Address(path="/x"), health) == Address(path="/x")


@pytest.mark.parametrize(("seconds", "words"), [(0.3, "300 ms"), (1.5, "1.5 s"), (0.0005, "0.5 ms")])
async def test_a_time_limit_in_words(seconds: float, words: str) -> None:
    assert probes.describe_timeout(seconds) == f"no answer within {words}"


# --- ping ---------------------------------------------------------------------------------------------------------


async def test_ping_answers_or_says_what_it_needs() -> None:
    try:
        words = await probes.ping(Address(host="127.0.0.1"), {}, 1.0)
    except ProbeUnavailable as problem:
        words = str(problem)
    assert words.startswith("echo in ") or "ping_group_range" in words


async def test_ping_without_rights_says_nothing_about_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import icmplib

    tried = []

    async def refused(*args: Any, privileged: bool, **settings: Any) -> None:
        tried.append(privileged)
        raise icmplib.SocketPermissionError(privileged)

    monkeypatch.setattr(icmplib, "async_ping", refused)
    with pytest.raises(ProbeUnavailable, match="not checked: ping needs this process's group"):
        await probes.ping(Address(host="127.0.0.1"), {}, 1.0)
    assert tried == [False, True]
    with pytest.raises(ProbeUnavailable, match="unix socket"):
        await probes.ping(Address(path="/x"), {}, 1.0)


# --- a protocol's own ---------------------------------------------------------------------------------------------


async def probe_of_a_protocol(address: Address, settings: dict[str, Any], timeout: float) -> str:
    return "hello"


def spec(probe: str) -> dict[str, ProtocolSpec]:
    return {"x": ProtocolSpec("x", lambda listener, node: NotImplemented, probe)}


async def test_a_protocols_probe_is_found_by_its_name() -> None:
    choose = probes.chooser(spec(f"{__name__}:probe_of_a_protocol"), HttpProbe())
    probe = choose(Health(kind="protocol", protocol="x"))
    assert await probe(Address(), {}, 1.0) == "hello"
    assert choose(Health(kind="protocol", protocol="x")) is probe


@pytest.mark.parametrize("name", ["", "nowhere.at.all:probe", f"{__name__}:none", "nocolon", ":x"])
async def test_a_probe_that_cannot_be_loaded_says_so(name: str) -> None:
    choose = probes.chooser(spec(name), HttpProbe())
    with pytest.raises(ProbeUnavailable, match="not checked: "):
        choose(Health(kind="protocol", protocol="x"))
    with pytest.raises(ProbeUnavailable, match="there is no probe for y"):
        choose(Health(kind="protocol", protocol="y"))


# --- servers that want a PROXY header


@asynccontextmanager
async def proxy_server(path: str, tls: ssl.SSLContext | None) -> AsyncIterator[tuple[Address, list[bytes]]]:
    """Notes the PROXY header that a connection begins with, and answers what comes behind it as TLS or HTTP."""
    loop = asyncio.get_running_loop()
    seen: list[bytes] = []

    async def serve(sock: socket.socket) -> None:
        parser, header, request = HeaderReader(4096), b"", b""
        with sock, contextlib.suppress(OSError, HeaderFault):
            while parser.header is None:
                header += await loop.sock_recv(sock, 1)
                parser.feed(header[-1:])
            seen.append(header)
            if tls is not None:
                transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, sock, ssl=tls)
                transport.abort()
                return
            while not request.endswith(b"\r\n\r\n") and (more := await loop.sock_recv(sock, 4096)):
                request += more
            await loop.sock_sendall(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def accept() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                sock, _ = await loop.sock_accept(listening)
                group.create_task(serve(sock))

    with socket.socket(socket.AF_UNIX if path else socket.AF_INET) as listening:
        listening.bind(path or ("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        task = asyncio.create_task(accept())
        try:
            yield Address(path=path) if path else Address(port=listening.getsockname()[1], host="127.0.0.1"), seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


KINDS = {
    "http": None,
    "tcp": probes.connect,
    "http's own": probes.load("l7lb.protocols.http.probe:probe"),
    "tcp's own": probes.load("l7lb.protocols.tcp.probe:probe"),
    "tls's own": probes.load("l7lb.protocols.tls.probe:probe"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_check_of_a_server_with_send_proxy_begins_with_a_header(
    kind: str, unix: bool, version: str, tmp_path: Path
) -> None:
    server = Server(name="a", address=Address(host="127.0.0.1", port=80), send_proxy=version)
    settings = probes.of_server(Health(kind=kind, settings={"path": "/"}), server).settings
    context = None
    if kind == "tls's own":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("a.example").configure_cert(context)
    async with proxy_server(str(tmp_path / "x.sock") if unix else "", context) as (address, seen):
        probe = HttpProbe() if kind == "http" else KINDS[kind]
        for _ in range(2):
            await probe(address, settings, 2.0)
        while len(seen) < 2:
            await asyncio.sleep(0.005)
        if kind == "http":
            await probe.close()
    for header in seen:
        if version == "v2":
            assert header == write_local()
        elif unix:
            assert header == UNKNOWN
        else:
            assert re.fullmatch(rb"PROXY TCP4 127\.0\.0\.1 127\.0\.0\.1 \d+ %d\r\n" % address.port, header)


@pytest.mark.parametrize(("port", "sent"), [(0, True), (80, True), (8080, False)])
async def test_a_check_at_another_port_begins_with_no_header(port: int, sent: bool) -> None:
    server = Server(name="a", address=Address(host="127.0.0.1", port=80), send_proxy="v2")
    assert ("send_proxy" in probes.of_server(Health(kind="tcp", port=port), server).settings) is sent
    plain = Server(name="a", address=Address(host="127.0.0.1", port=80))
    health = Health(kind="tcp", port=port)
    assert probes.of_server(health, plain) is health
