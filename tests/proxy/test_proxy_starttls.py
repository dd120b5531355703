"""TLS on request, on both sides: when it begins, what it costs to break it, how a server's way is found out."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from proxy_scene import connections, quiet, states
from starttls_scene import EVENTS, PROTOCOLS, snapshot
from test_proxy_tls_servers import server_context
from tls_scene import client_context, issued

from l7lb.proxy import counts as columns
from l7lb.proxy import upstream
from l7lb.testing import Node, Wire
from l7lb.testing.tls import TlsWire

Run = Callable[[Coroutine[Any, Any, None]], None]


CLIENTS: list[Wire] = []


async def over(one: Node) -> None:
    """All clients leave, and nothing of them stays."""
    while CLIENTS:
        CLIENTS.pop().close()
    await quiet(one)


@pytest.fixture(autouse=True)
def events() -> Iterator[list[str]]:
    EVENTS.clear()
    yield EVENTS
    EVENTS.clear()


def node(folder: Path, server_mode: str = "", **values: Any) -> Node:
    return Node(snapshot(folder, server_mode, **values), protocols=PROTOCOLS, server_tls=True)


async def begun(one: Node) -> Wire:
    client = await connected(one)
    await client.until(b"hello\r\n")
    return client


async def connected(one: Node) -> Wire:
    CLIENTS.append(await one.connect())
    return CLIENTS[-1]


async def asked(one: Node) -> Wire:
    """A client that was told to begin its handshake."""
    client = await begun(one)
    await client.send(b"STARTTLS\r\n")
    await client.until(b"go\r\n")
    return client


# --- the client's side --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1])
def test_a_client_asks_for_tls_and_goes_on(run: Run, tmp_path: Path, cut: int) -> None:
    async def scene() -> None:
        async with node(tmp_path) as one:
            plain = await begun(one)
            await plain.send(b"before\r\nSTARTTLS\r\n", 3)
            await plain.until(b"before\r\ngo\r\n")
            client = await TlsWire.over(plain, client_context(), server_hostname="example.com", cut=cut)
            await client.send(b"first\r\nsecond\r\n")
            await client.until(b"first\r\nsecond\r\n")
            assert EVENTS == ["secured True example.com"]
            await client.close_notify()
            client.close()
            await over(one)
            slot = one.snapshot.listeners[0].slot
            assert one.counts.total(slot, columns.HANDSHAKES) == 1
            assert one.counts.total(slot, columns.OPENING) == 0

    run(scene())


def test_what_stands_behind_the_request_is_never_taken_for_encrypted(run: Run, tmp_path: Path) -> None:
    """In one piece with it the session sees it; behind it the handshake does."""

    async def scene() -> None:
        async with node(tmp_path) as one:
            client = await begun(one)
            await client.send(b"STARTTLS\r\ninjected\r\n")
            assert await client.rest() == b""
            client = await asked(one)
            await client.send(b"injected\r\n")
            assert (await client.rest())[:1] == b"\x15"  # an alert, and nothing in the clear
            assert EVENTS == ["ended CLIENT True"]
            await over(one)

    run(scene())


@pytest.mark.parametrize("listeners_mode", ["implicit", "starttls"])
def test_http_at_a_port_of_another_protocol_gets_no_answer_in_its_words(
    run: Run, tmp_path: Path, listeners_mode: str
) -> None:
    async def scene() -> None:
        async with node(tmp_path, client_mode=listeners_mode) as one:
            client = await (connected(one) if listeners_mode == "implicit" else asked(one))
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.rest())[:1] == b"\x15"
            await over(one)

    run(scene())


@pytest.mark.parametrize("how", ["close", "reset", "silence"])
def test_a_client_that_gives_up_inside_its_handshake(run: Run, tmp_path: Path, how: str) -> None:
    async def scene() -> None:
        made = snapshot(tmp_path)
        made = msgspec.structs.replace(made, listeners=(msgspec.structs.replace(made.listeners[0], handshake=0.2),))
        async with Node(made, protocols=PROTOCOLS) as one:
            client = await asked(one)
            await client.send(b"\x16\x03\x01")
            if how == "silence":
                await client.sees_closed()
            getattr(client, how if how != "silence" else "close")()
            await over(one)
            assert EVENTS == ["ended CLIENT True"]

    run(scene())


def test_a_reset_answer_and_a_drain_during_the_handshake(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with node(tmp_path) as one:
            client = await asked(one)
            await one.until(lambda: one.runtime.connections == 1)
            one.runtime.drain(patient=True)
            secure = await TlsWire.over(client, client_context(), server_hostname="example.com")
            assert await secure.rest() == b""  # draining comes when the handshake is over
            assert EVENTS == ["secured True example.com"]
            await over(one)

    run(scene())


def test_who_reads_nothing_before_the_handshake_does_not_get_it(run: Run, tmp_path: Path) -> None:
    """The answer stands in the socket; what waits in the process is sent before the first byte of TLS."""

    async def scene() -> None:
        async with node(tmp_path) as one:
            client = await begun(one)
            await client.send(b"x" * 4096 + b"\r\n")
            line = b"y" * 8192 + b"\r\n"
            await client.send(line * 400 + b"STARTTLS\r\n")
            received = await client.until(b"go\r\n")
            assert received.count(b"y" * 8192 + b"\r\n") == 400
            secure = await TlsWire.over(client, client_context(), server_hostname="example.com")
            await secure.send(b"on\r\n")
            await secure.until(b"on\r\n")
            secure.close()
            await over(one)

    run(scene())


# --- the server's side --------------------------------------------------------------------------------------------


async def to_server(one: Node) -> tuple[Wire, Wire]:
    """A client whose server has greeted."""
    await one.by_hand({"web1"}, None)
    client = await begun(one)
    await client.send(b"SERVER\r\n")
    server = await one.server("web1").accept()
    return client, server


async def consents(server: Wire, behind: bytes = b"") -> None:
    await server.send(b"welcome\r\n")
    await server.until(b"STARTTLS\r\n")
    await server.send(b"ok\r\n" + behind)


def test_no_tls_is_wanted(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with node(tmp_path) as one:
            client, server = await to_server(one)
            await server.send(b"welcome\r\n")
            await client.until(b"greeting welcome \r\n")
            client.close()
            await server.sees_closed()
            await over(one)

    run(scene())


def test_tls_from_the_first_byte(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with node(tmp_path, "implicit") as one:
            client, plain = await to_server(one)
            server = await TlsWire.over(plain, server_context(issued("web1.example.com")), server_side=True)
            await server.send(b"welcome\r\n")
            await client.until(b"greeting welcome done\r\n")
            client.close()
            await server.rest()
            await over(one)

    run(scene())


@pytest.mark.parametrize("mode", ["starttls", "auto"])
@pytest.mark.parametrize("cut", [0, 1])
def test_the_session_asks_the_server_for_tls(run: Run, tmp_path: Path, mode: str, cut: int) -> None:
    async def scene() -> None:
        async with node(tmp_path, mode) as one:
            for number in range(2):
                client, plain = await to_server(one)
                await consents(plain)
                context = server_context(issued("web1.example.com"))
                server = await TlsWire.over(plain, context, server_side=True, cut=cut)
                assert await server.until(b"READY\r\n") == b"READY\r\n"
                await client.until(b"ready\r\n")
                await server.send(b"in tls\r\n")
                await client.until(b"greeting in tls done\r\n")
                assert ["server secured done"] * (number + 1) == EVENTS
                assert states(one)["web1"].learned == ({"imap4": "starttls"} if mode == "auto" else {})
                client.close()
                await server.rest()
                await over(one)
                EVENTS[:] = [event for event in EVENTS if not event.startswith("ended")]
            slot = one.snapshot.pools[0].servers[0].slot
            assert one.counts.total(slot, columns.HANDSHAKES) + one.counts.total(slot, columns.RESUMED) == 2

    run(scene())


def test_a_silent_server_in_mode_auto_gets_a_handshake_and_is_remembered(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "GREETING_SECONDS", 0.1)

    async def scene() -> None:
        async with node(tmp_path, "auto") as one:
            context = server_context(issued("web1.example.com"))
            for _ in range(2):
                client, plain = await to_server(one)
                server = await TlsWire.over(plain, context, server_side=True)
                await server.send(b"welcome\r\n")
                await client.until(b"greeting welcome done\r\n")
                assert states(one)["web1"].learned == {"imap4": "implicit"}
                monkeypatch.setattr(upstream, "GREETING_SECONDS", 60.0)  # the second time it is known
                client.close()
                await server.rest()
                await over(one)

    run(scene())


def test_a_server_that_changed_its_way_is_looked_at_again(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with node(tmp_path, "auto", retries={"attempts": 0}) as one:
            states(one)["web1"].learned["imap4"] = "implicit"
            client, server = await to_server(one)
            await server.send(b"welcome\r\n")
            assert await client.rest() == b"connect-tls\r\n"
            server.close()
            assert states(one)["web1"].learned == {}
            client, server = await to_server(one)
            await consents(server)
            await TlsWire.over(server, server_context(issued("web1.example.com")), server_side=True)
            await client.until(b"ready\r\n")
            client.close()
            server.close()
            await over(one)

    run(scene())


@pytest.mark.parametrize("mode", ["starttls", "auto"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_server_that_leaves_while_its_greeting_is_waited_for(run: Run, tmp_path: Path, mode: str, how: str) -> None:
    async def scene() -> None:
        async with node(tmp_path, mode, retries={"attempts": 0}) as one:
            client, server = await to_server(one)
            getattr(server, how)()
            ended = await client.rest()
            assert ended == (b"connect-refused\r\n" if mode == "auto" else b"")
            await over(one)

    run(scene())


def test_what_a_server_sends_behind_its_consent_is_never_taken_for_encrypted(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with node(tmp_path, "starttls") as one:
            client, server = await to_server(one)
            await consents(server, b"injected\r\n")
            assert await client.rest() == b""
            server.close()
            client, server = await to_server(one)
            await consents(server)
            await server.until(b"\x16\x03")  # else both could come with one read
            await server.send(b"injected\r\n")
            assert await client.rest() == b"connect-tls\r\n"
            server.close()
            assert "server secured done" not in EVENTS
            await over(one)

    run(scene())


@pytest.mark.parametrize("how", ["name", "close", "silence"])
def test_a_handshake_with_a_server_that_fails(
    run: Run, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with node(tmp_path, "starttls", timeouts={"connect": "300ms"}) as one:
            client, server = await to_server(one)
            await consents(server)
            if how == "name":
                context = server_context(issued("other.example.com"), version="1.2")
                with pytest.raises(ssl.SSLError):
                    await TlsWire.over(server, context, server_side=True)
            elif how == "close":
                server.close()
            assert await client.rest() == (b"connect-timeout\r\n" if how == "silence" else b"connect-tls\r\n")
            server.close()
            await over(one)

    run(scene())
    assert ("Hostname mismatch" in caplog.text) is (how == "name")


def test_a_client_that_leaves_during_the_handshake_with_its_server(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with node(tmp_path, "starttls") as one:
            client, server = await to_server(one)
            await consents(server)
            assert (await server.read())[:1] == b"\x16"
            client.close()
            await server.sees_closed()
            await over(one)

    run(scene())


def test_a_server_has_a_port_for_each_protocol(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with node(tmp_path) as one:
            state = states(one)["web1"]
            port = one.server("web2").address.port
            state.configure(msgspec.structs.replace(state.config, ports={"pop3": 1, "imap4": port}))
            await one.by_hand(None, None)
            client = await begun(one)
            await client.send(b"SERVER\r\n")
            server = await one.server("web2").accept()
            await server.send(b"welcome\r\n")
            await client.until(b"greeting welcome \r\n")
            client.close()
            server.close()
            await over(one)

    run(scene())


@pytest.mark.parametrize("mode", ["", "starttls", "auto"])
@pytest.mark.parametrize("how", ["proxy-v1", "id"])
def test_servers_learn_the_client_by_a_proxy_header_where_the_pool_says_so(
    run: Run, tmp_path: Path, mode: str, how: str
) -> None:
    async def scene() -> None:
        made = snapshot(tmp_path, mode)
        pool = msgspec.structs.replace(made.pools[0], client_address={"imap4": how, "pop3": "proxy-v2"})
        async with Node(msgspec.structs.replace(made, pools=(pool,)), protocols=PROTOCOLS, server_tls=True) as one:
            client, server = await to_server(one)
            if how == "proxy-v1":
                assert (await server.line()).startswith("PROXY TCP4 127.0.0.1 127.0.0.1 ")
            await server.send(b"welcome\r\n")
            if mode:
                await server.expect(b"STARTTLS\r\n")
            client.close()
            await server.sees_closed()
            await over(one)

    run(scene())


def test_a_reload_that_takes_tls_away_in_between(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing goes on in the clear that was promised to be encrypted, on either side."""

    async def scene() -> None:
        made = snapshot(tmp_path, "starttls")
        async with Node(made, protocols=PROTOCOLS, server_tls=True) as one:
            first = await begun(one)
            client, server = await to_server(one)
            await server.send(b"welcome\r\n")
            await server.until(b"STARTTLS\r\n")
            replace = msgspec.structs.replace
            servers = tuple(replace(each, tls=None) for each in made.pools[0].servers)
            await one.reload(
                replace(
                    made,
                    listeners=(replace(made.listeners[0], tls=None),),
                    pools=(replace(made.pools[0], servers=servers),),
                )
            )
            await server.send(b"ok\r\n")
            assert await client.rest() == b"connect-tls\r\n"
            await first.send(b"STARTTLS\r\n")
            assert b"go" not in (await first.rest()).replace(b"go\r\n", b"")
            assert EVENTS == ["connect-tls"]
            server.close()
            await over(one)

    run(scene())
    assert "its configuration no longer has TLS" in caplog.text
    assert "no longer has the TLS that it offered" in caplog.text
    assert "fault" not in caplog.text


# --- one protocol of a server is down -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["imap4", "pop3"])
def test_a_server_is_passed_over_for_a_protocol_that_is_down(run: Run, tmp_path: Path, protocol: str) -> None:
    async def scene() -> None:
        async with node(tmp_path) as one:
            await one.by_hand(None, None)
            one.runtime.server_health(msgspec.structs.replace(verdict(one), down=(protocol,)))
            client = await begun(one)
            await client.send(b"SERVER\r\n")
            server = await one.server("web2" if protocol == "imap4" else "web1").accept()
            assert states(one)["web1"].alive_for(protocol) is False
            assert states(one)["web1"].open_for("smtp")
            client.close()
            await server.sees_closed()
            one.disable("web2")
            client = await begun(one)
            await client.send(b"SERVER\r\n")
            if protocol == "imap4":
                assert await client.rest() == b"no-server\r\n"
            else:
                await one.server("web1").accept()
                client.close()
            await over(one)

    run(scene())


def verdict(one: Node) -> Any:
    return next(message for message in one.state.health_messages() if message.server == "web1")


# --- the node ends a session --------------------------------------------------------------------------------------


def test_a_dismissed_session_says_goodbye(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with node(tmp_path) as one:
            client, server = await to_server(one)
            await server.send(b"welcome\r\n")
            await client.until(b"greeting welcome \r\n")
            connections(one)[0].dismiss("it moves", 0.0)
            assert await client.rest() == b"bye it moves\r\n"
            await server.sees_closed()
            await over(one)

    run(scene())


@pytest.mark.parametrize("quiet_seconds", [0.0, 60.0])
def test_a_tunnel_that_is_dismissed_hears_a_goodbye_only_between_answers(
    run: Run, tmp_path: Path, quiet_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l7lb.proxy import connection

    if not str(connection.__file__).endswith(".py") and not quiet_seconds:
        pytest.skip("compiled: a constant is in its place and can't be another for a test")
    monkeypatch.setattr(connection, "QUIET_SECONDS", quiet_seconds)

    async def scene() -> None:
        async with node(tmp_path) as one:
            client, server = await to_server(one)
            await one.until(lambda: connections(one)[0].upstream is not None)
            await client.send(b"TUNNEL\r\n")
            await one.until(lambda: connections(one)[0].tunnel)
            await server.send(b"* 1 FETCH (BODY[] {100}\r\nabc")
            await client.until(b"abc")
            connections(one)[0].dismiss("it moves", 0.0)
            if quiet_seconds:
                await client.sees_reset()
            else:
                assert await client.rest() == b"bye it moves\r\n"
            assert EVENTS == ["dismissed it moves"]
            await server.sees_closed()
            await over(one)

    run(scene())


@pytest.mark.parametrize("shaking", [True, False])
def test_a_session_that_is_dismissed_in_its_handshake_or_before_it_hears_nothing(
    run: Run, tmp_path: Path, shaking: bool
) -> None:
    async def scene() -> None:
        async with node(tmp_path, client_mode="starttls" if shaking else "implicit") as one:
            client = await (asked(one) if shaking else connected(one))
            await one.until(lambda: connections(one))
            connections(one)[0].dismiss("it moves", 0.0)
            await client.sees_closed()
            assert (["dismissed it moves"] if shaking else []) == EVENTS
            await over(one)

    run(scene())
