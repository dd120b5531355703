"""What one read through TLS may cost."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from proxy_scene import quiet
from tls_scene import client_context, dial, issued, tls_config

from l7lb.core.servers import ServerState
from l7lb.core.snapshot import Address, Server
from l7lb.proxy import openssl
from l7lb.proxy.endpoint import Sender
from l7lb.proxy.tls import DONE, Tls, wrap
from l7lb.proxy.upstream import ServerConnection
from l7lb.testing import Node

Run = Callable[[Coroutine[Any, Any, None]], None]
UPDATES = 50


@pytest.mark.skipif(not openssl.available(), reason="OpenSSL's own functions can't be reached in this Python")
def test_a_read_ends_behind_a_record_that_holds_no_data() -> None:
    """Else one client that changes its keys without end keeps the process in one read, and all others waiting."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued("example.com").configure_cert(context)
        server = Tls()
        server._take(wrap(context, ours, server, server_side=True))
        client = wrap(client_context(version="1.3"), theirs, Tls(), server_hostname="example.com")
        shake(server, client)
        change_keys(client, UPDATES)
        client.write(b"at last")

        read = [server.receive(100) for _ in range(UPDATES + 1)]

        assert read == [None] * UPDATES + [b"at last"]
        client.write(b"and more")
        assert server.receive(100) == b"and more"


@pytest.mark.skipif(not openssl.available(), reason="OpenSSL's own functions can't be reached in this Python")
def test_a_reset_behind_records_that_hold_no_data_is_noticed_at_once(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            client = await dial(node, context=client_context(version="1.3"))
            change_keys(client.tls._sslobj, UPDATES)
            await client.send(b"")
            client.wire.reset()
            async with asyncio.timeout(2):
                await quiet(node)

    run(scene())


@pytest.mark.parametrize("ended", [False, True])
def test_the_end_of_an_idle_server_is_seen_behind_its_tickets(run: Run, ended: bool) -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued("example.com").configure_cert(context)
        loop = asyncio.get_running_loop()
        state = ServerState("web", Server(name="web1", address=Address("127.0.0.1", 1)))
        connection = ServerConnection(loop, Sender(loop), ours, state)
        connection.tls = Tls()
        connection.tls._take(wrap(client_context(version="1.3"), ours, Tls(), server_hostname="example.com"))
        server = wrap(context, theirs, Tls(), server_side=True)
        shake(connection.tls, server)  # behind which two tickets are on their way
        if ended:
            theirs.close()
        assert connection.readable_now() is ended
        connection.leave()
        theirs.close()

    run(scene())


def shake(ours: Tls, theirs: ssl.SSLObject) -> None:
    waiting = True
    while waiting:
        try:
            theirs.do_handshake()
            waiting = False
        except ssl.SSLWantReadError:
            waiting = True
        waiting = ours.shake() != DONE or waiting


def change_keys(client: ssl.SSLObject, times: int) -> None:
    """Send so many KeyUpdate records that ask for none in return."""
    import _ssl

    library = ctypes.CDLL(_ssl.__file__)
    pointer = ctypes.c_void_p(openssl._connection_pointer(client))
    for _ in range(times):
        assert library.SSL_key_update(pointer, 0) == 1
        assert library.SSL_do_handshake(pointer) == 1
