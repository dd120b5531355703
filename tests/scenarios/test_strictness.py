"""What is malformed is refused, in both directions, over real sockets; and the next in line does not notice."""

from __future__ import annotations

import pytest
from malformed import ANSWERS, COMPLAINTS, REFUSALS, REQUESTS

from l7lb.testing import Node
from l7lb.testing.http import Response, read_response

CONFIG = """
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:80"]
    limits: {body_bytes: 1MiB}
    routes:
      - pool: web
pools:
  web:
    retries: {attempts: 0}
    servers: [{name: web1, address: "127.0.0.1:1"}]
"""


TOLD = {name: text for text, names in REFUSALS.items() for name in names}
COMPLAINED = {name: text for text, names in COMPLAINTS.items() for name in names}


def told(response: Response) -> str:
    """A refusal in short: its status and what its text says of the fault."""
    status, text = response.body.decode().rstrip("\n").split(": ", 1)
    assert status.split()[0] == str(response.status)
    return f"{response.status} {text}"


@pytest.mark.asyncio
@pytest.mark.parametrize("pieces", [0, 1], ids=["whole", "byte by byte"])
async def test_malformed_requests_are_refused(pieces: int) -> None:
    wrong = []
    async with Node(CONFIG, patience=3.0) as node:
        server = node.server("web1")
        for name, data in REQUESTS.items():
            if pieces and len(data) > 5000:
                continue
            before = len(server.requests)
            async with await node.connect() as wire:
                try:
                    await wire.send(data, cut=pieces)
                except ConnectionError:
                    pass  # refused before the last byte was sent
                try:
                    response = await read_response(wire)
                    if told(response) != TOLD[name]:
                        wrong.append(f"{name}: {told(response)}")
                    await wire.sees_closed()
                except (AssertionError, ValueError) as problem:
                    wrong.append(f"{name}: {problem}")
            if len(server.requests) != before:
                complete = [one.target for one in server.requests[before:]]
                # A broken body may only show behind a head that has gone on; what follows it must not.
                if "/smuggled" in complete or len(complete) > 1:
                    wrong.append(f"{name}: the server got {complete}")
        assert not wrong, "\n".join(wrong)
        assert (await node.get("/")).status == 200


@pytest.mark.asyncio
async def test_well_formed_neighbours_do_not_notice() -> None:
    async with Node(CONFIG, patience=3.0) as node, node.browser() as browser:
        for data in REQUESTS.values():
            async with await node.connect() as wire:
                try:
                    await wire.send(data)
                except ConnectionError:
                    pass
                assert (await browser.get("/")).status == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ANSWERS)
async def test_malformed_answers_become_502_and_their_connection_is_dropped(name: str) -> None:
    async with Node(CONFIG, patience=3.0) as node:
        server = node.server("web1")
        await node.by_hand({"web1"}, None)
        async with await node.connect() as wire:
            await wire.send_lines("GET / HTTP/1.1", "Host: a", "")
            upstream = await server.accept()
            await upstream.until(b"\r\n\r\n")
            await upstream.send(ANSWERS[name])
            if name in ("nothing", "half a head"):
                upstream.half_close()
            response = await read_response(wire)
            assert told(response) == f"502 {COMPLAINED[name]}"
            await upstream.sees_closed()
        record = await node.record()
        assert record.status == 502
        failure = "server-closed" if name in ("nothing", "half a head") else "server-protocol"
        assert record.ended == f"{failure}@response-header"


@pytest.mark.asyncio
async def test_names_that_a_gateway_reads_as_another_are_not_passed_on() -> None:
    async with Node(CONFIG) as node:
        answer = await node.get("/", {"Content_Length": "3", "Transfer_Encoding": "chunked", "X-Fine": "1"})
        assert answer.status == 200
        assert "x-fine" in answer.seen.headers
        assert not [name for name, _ in answer.seen.headers if "_" in name]


def test_the_list_is_long_enough() -> None:
    assert len(REQUESTS) >= 78
    assert len(set(REQUESTS.values())) == len(REQUESTS)
    assert TOLD.keys() == REQUESTS.keys()
    assert COMPLAINED.keys() == ANSWERS.keys()
    assert sum(map(len, REFUSALS.values())) == len(REQUESTS)  # nobody is told two things
