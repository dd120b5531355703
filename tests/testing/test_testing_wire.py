import asyncio

import pytest

from l7lb.testing import Ended, ScriptedServer, Transcript, Unexpected, Wire


async def pair(patience: float = 5.0) -> tuple[ScriptedServer, Wire, Wire]:
    transcript = Transcript()
    server = ScriptedServer(patience=patience, transcript=transcript)
    server.listen()
    client = await Wire.connect(server.address, patience=patience, transcript=transcript)
    return server, client, await server.accept()


def test_lines_go_both_ways(run) -> None:
    async def scene() -> None:
        server, client, wire = await pair()
        await client.send_lines("GET / HTTP/1.1", "Host: a", "X: [1]?", "")
        await wire.expect_lines("GET * HTTP/1.1", "...", "X: [1]?", "")
        await wire.send(b"hello")
        await client.expect(b"hel")
        assert await client.exactly(2) == b"lo"
        wire.close()
        await client.sees_end()
        client.close()
        await server.close()

    run(scene())


def test_pieces_arrive_one_by_one(run) -> None:
    async def scene() -> None:
        server, client, wire = await pair()
        reading = asyncio.ensure_future(wire.read())
        await client.send(b"abc", cut=1)
        assert await reading == b"a"
        await wire.expect(b"bc")
        await server.close()
        client.close()

    run(scene())


def test_a_half_close_leaves_the_other_direction_open(run) -> None:
    async def scene() -> None:
        server, client, wire = await pair()
        client.half_close()
        await wire.sees_end()
        await wire.send(b"late")
        wire.close()
        assert await client.rest() == b"late"
        client.close()
        await server.close()

    run(scene())


def test_a_reset_is_told_from_an_end(run) -> None:
    async def scene() -> None:
        server, client, wire = await pair()
        wire.reset()
        await client.sees_reset()
        with pytest.raises(Ended) as ended:
            await client.line()
        assert ended.value.reset
        client.close()
        client = await Wire.connect(server.address)
        (await server.accept()).close()
        with pytest.raises(Unexpected, match="expected a reset and got the end"):
            await client.sees_reset()
        client.close()
        await server.close()

    run(scene())


def test_failures_show_what_was_said(run) -> None:
    async def scene() -> None:
        server, client, wire = await pair(patience=0.05)
        await client.send_lines("EHLO there")
        with pytest.raises(Unexpected, match=r"expected 'HELO \*' and got 'EHLO there'\n(.|\n)*client> EHLO there"):
            await wire.expect_lines("HELO *")
        with pytest.raises(Unexpected, match=r"waited 0.05 s for"):
            await wire.line()
        await wire.send(b"half a line")
        wire.close()
        with pytest.raises(Ended, match="after b'half a line'"):
            await client.line()
        client.close()
        with pytest.raises(Unexpected, match="nobody connected"):
            await server.accept()
        await server.close()

    run(scene())


def test_a_server_refuses_and_listens_again_on_its_port(run) -> None:
    async def scene() -> None:
        async with ScriptedServer() as server:
            server.refuse()
            with pytest.raises(ConnectionRefusedError):
                await Wire.connect(server.address)
            server.listen()
            async with await Wire.connect(server.address):
                await server.accept()

    run(scene())


def test_a_server_dies_and_resets_its_connections(run) -> None:
    async def scene() -> None:
        server, client, _ = await pair()
        server.die()
        await client.sees_reset()
        with pytest.raises(ConnectionRefusedError):
            await Wire.connect(server.address)
        client.close()
        await server.close()

    run(scene())


def test_many_resets_do_not_spoil_later_connections(run) -> None:
    """A descriptor's number comes again at once; uvloop must not remember the one that was reset."""

    async def scene() -> None:
        async with ScriptedServer() as server:
            for _ in range(50):
                client = await Wire.connect(server.address)
                wire = await server.accept()
                await client.send(b"x")
                await wire.expect(b"x")
                wire.reset()
                await client.sees_reset()
                client.close()

    run(scene())
