from pathlib import Path

import pytest

from l7lb.testing import Node, Playbook, Unexpected, pieces

CONFIG = Path(__file__).with_name("rules.yaml")

FORWARDED = r"""
    # A request and its answer, as they go over both connections.
    client connects
    client> GET /api/users HTTP/1.1
    client> Host: shop.example.org
    client>
    api1 accepts
    api1< GET /api/users HTTP/1.1
    api1< ...
    api1< x-l7lb-route: api
    api1< ...
    api1<
    api1> HTTP/1.1 200 OK
    api1> Content-Length: 6
    api1>
    api1> hello!\
    client< HTTP/1.1 200 OK
    client< ...
    client<
    client< hello!\
    client closes
"""


def test_a_conversation_as_it_is_written(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node:
            transcript = str(await node.play(FORWARDED))
            assert r"client> GET /api/users HTTP/1.1\r" in transcript
            assert "client< hello!" in transcript
            # Afterwards the servers answer by themselves again.
            assert (await node.get("http://a.example.org/api/")).server == "api1"

    run(scene())


def test_every_split_gives_the_same(run) -> None:
    async def scene() -> None:
        playbook = Playbook(FORWARDED)
        async with Node(CONFIG) as node:
            for split in [pieces(1), pieces(7), *playbook.splits()]:
                await node.play(playbook, split)

    run(scene())


def test_pipelining_and_whichever_server(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node:
            await node.play("""
                client connects
                client> GET /one HTTP/1.1
                client> Host: a
                client>
                client> GET /two HTTP/1.1
                client> Host: a
                client>
                first accepts
                first< GET /one HTTP/1.1
                first< ...
                first<
                first> HTTP/1.1 204 No Content
                first>
                client< HTTP/1.1 204 No Content
                client< ...
                client<
                second accepts
                second< GET /two HTTP/1.1
                second< ...
                second<
                second> HTTP/1.1 304 Not Modified
                second>
                client< HTTP/1.1 304 Not Modified
                client< ...
                client<
                client half-closes
                client sees end
            """)

    run(scene())


def test_servers_fail_by_hand(run) -> None:
    async def scene() -> None:
        async with Node(CONFIG) as node:
            await node.play("""
                web1 refuses
                web2 is down
                client connects
                client> GET / HTTP/1.1
                client> Host: a
                client>
                client< HTTP/1.1 503 *
                client closes
                web2 is up
                web1 listens
                client connects
                client> GET /api/x HTTP/1.1
                client> Host: a.example.org
                client>
                api1 accepts
                api1< GET *
                api1< ...
                api1<
                api1 resets
                client< HTTP/1.1 502 *
            """)

    run(scene())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("api1 < what", "line 1: 'api1 < what' is no step"),
        ("client dances", "line 1: nobody can do 'dances'"),
        ("client connects\nclient is upside down", "line 2: nobody can do 'is upside down'"),
    ],
)
def test_lines_that_are_no_steps(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Playbook(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client> hello", "line 1, `client> hello`: client has no connection yet"),
        ("client connects\nclient> HELO\nclient>\nclient< 250 *", r"line 4, `client< 250 \*`: (.|\n)*HTTP/1.1 400"),
        ("nobody refuses", "line 1, `nobody refuses`: there is no server nobody"),
        ("client connects\nclient> GET / HTTP/1.0\nclient>\nclient sees reset", "expected a reset and got"),
    ],
)
def test_failures_name_the_step(run, text: str, message: str) -> None:
    async def scene() -> None:
        async with Node(CONFIG, patience=2.0) as node:
            with pytest.raises(Unexpected, match=message):
                await node.play(text)

    run(scene())


def test_bytes_as_they_are_written() -> None:
    steps = Playbook("a> x\\x00y\\\\\\r\\n\\\na> z\na< \\xff\\").steps
    assert [(step.verb, step.data) for step in steps] == [(">", b"x\x00y\\\r\nz\r\n"), ("<", b"\xff")]
