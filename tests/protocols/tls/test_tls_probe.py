"""The health checks of connections that are passed through, against servers of all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from l7lb.core.errors import ProbeFailed
from l7lb.core.snapshot import Address
from l7lb.protocols.tcp.probe import probe as tcp
from l7lb.protocols.tls import alerts
from l7lb.protocols.tls.probe import probe as tls

pytestmark = pytest.mark.asyncio
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """A server on a free port, whose connections are closed when it ends."""
    handled: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    await asyncio.gather(*handled)


def says(data: bytes, asked: int = 0) -> Handler:
    """Wait for so many bytes, say this, and close."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked:
            await reader.readexactly(asked)
        writer.write(data)
        writer.close()

    return handle


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing until the other has gone."""
    await reader.read()
    writer.close()


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    """A server's, with a certificate that nobody trusts."""
    file = tmp_path / "server.pem"
    trustme.CA().issue_cert("a.example").private_key_and_cert_chain_pem.write_to_path(str(file))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


async def test_a_handshake(context: ssl.SSLContext) -> None:
    async with serving(silent, context) as address:
        assert await tls(address, {}, 5.0) == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(silent, context) as address:
        assert await tls(address, {"server_name": "a.example"}, 5.0) == "TLSv1.2"


async def test_behind_a_proxy_header(context: ssl.SSLContext) -> None:
    def serve(listening: socket.socket) -> bytes:
        connection, _ = listening.accept()
        with connection:
            header = b""
            while not header.endswith(b"\n"):
                header += connection.recv(1)
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True):
                return header
        return b""

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = Address("127.0.0.1", listening.getsockname()[1])
        serving = asyncio.create_task(asyncio.to_thread(serve, listening))
        assert await tls(address, {"send_proxy": "v1"}, 5.0) == "TLSv1.3"
        assert (await serving).startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")


async def test_a_server_that_wants_a_name_is_well() -> None:
    async with serving(says(alerts.alert(alerts.UNRECOGNIZED_NAME), 5)) as address:
        assert "unrecognized name" in await tls(address, {}, 5.0)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n", 5), "not TLS: "),
        (says(alerts.alert(alerts.INTERNAL_ERROR), 5), "internal error"),
        (says(b"", 5), "."),
        (silent, "no answer within 0.2 s"),
    ],
)
async def test_no_handshake(handler: Handler, reason: str) -> None:
    async with serving(handler) as address:
        with pytest.raises(ProbeFailed, match=reason):
            await tls(address, {}, 0.2 if handler is silent else 5.0)


async def test_nobody_listens() -> None:
    async with serving(silent) as address:
        pass
    for probe in (tls, tcp):
        with pytest.raises(ProbeFailed, match=r"[Rr]efused|Connect call failed"):
            await probe(address, {}, 5.0)


async def test_a_tcp_server_that_waits_or_speaks() -> None:
    for handler in (silent, says(b"220 hello\r\n")):
        async with serving(handler) as address:
            assert await tcp(address, {}, 5.0) == "connected"


async def test_a_tcp_server_that_closes_at_once() -> None:
    async with serving(says(b"")) as address:
        with pytest.raises(ProbeFailed, match="closed at once"):
            await tcp(address, {}, 5.0)
