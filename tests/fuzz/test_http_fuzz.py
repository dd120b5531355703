"""The HTTP machine against other parsers, against itself in other pieces, and against damage.

``make fuzz SEEDS=100000`` runs longer; a failure names its seed.
"""

from __future__ import annotations

import os
import random
import re
import time
from dataclasses import dataclass

import h11
import pytest
from http_messages import ANSWERS, REQUESTS, mutated, positions, streams
from http_oracles import read_h11, read_httptools
from http_rig import ANSWER, Outcome, Rig, Seen, cut
from hypothesis import given
from hypothesis import strategies as st

SEEDS = int(os.environ.get("L7LB_FUZZ_SEEDS", "400"))
SECONDS = 10.0 if "L7LB_FUZZ_SEEDS" not in os.environ else 3000.0
CUTS = st.lists(st.integers(0, 400), max_size=12)


# What another parser refuses though it is not ambiguous; that these refusals are the only ones is what is tested.
PECULIAR = {
    "it closes",  # h11 does so after HTTP/1.0, keep-alive or not
    "Expected space after method",  # llhttp knows a list of methods; any token is one
    "Invalid method encountered",
    # Only the server's 101 ends HTTP, not the client's offer; ours never says 101.
    "it upgrades",
    "it pauses",
}
# Both take trailers for header fields. Here a trailer of such a name is not passed on, and frames nothing.
IN_TRAILERS = {
    "bad Content-Length",
    "Content-Length can't be present with Transfer-Encoding",
    "Invalid `Transfer-Encoding` header value",
}
# Extensions of chunks end unread here, and RFC 9112 section 7.1.1 has a reader take space around their semicolon.
EXTENSION = re.compile(
    r"illegal chunk header: bytearray\(b'[0-9a-fA-F]+( |\\t)+;"
    r"|Invalid character in chunk (extensions.*|size)$"
)
SPACED_SIZE = re.compile(rb"[0-9a-fA-F][ \t]+;")


def tolerable(stopped: str, data: bytes, seen: Seen) -> bool:
    """Whether a parser's reason to stop is one of those above, at a request of which the server got this."""
    chunked = (b"transfer-encoding", b"chunked") in seen.headers
    if EXTENSION.match(stopped):
        return chunked and (stopped != "Invalid character in chunk size" or SPACED_SIZE.search(data) is not None)
    return stopped in PECULIAR or (chunked and stopped in IN_TRAILERS)


def seeds(kind: str):
    """Numbered sources of chance, until their number or their time is over."""
    end = time.monotonic() + SECONDS
    for number in range(SEEDS):
        if time.monotonic() > end:
            break
        yield number, random.Random(f"{kind} {number}")


def agree(data: bytes, outcome: Outcome) -> None:
    """What the server got is what the other parsers read: as many requests, the same methods and bodies."""
    complete = [seen for seen in outcome.requests if seen.complete]
    for oracle in (read_h11, read_httptools):
        found, stopped = oracle(data)
        if stopped == "it upgrades":
            found = found[:-1]  # llhttp takes what follows for the other protocol's, a body of known length too
        for number, seen in enumerate(complete):
            if number >= len(found) and tolerable(stopped, data, seen):
                break
            assert number < len(found), (
                f"{oracle.__name__} stopped before request {number} of {data!r}: {stopped}; the server got {seen}"
            )
            assert (found[number].method, found[number].body) == (seen.method, seen.body), (
                f"{oracle.__name__} read {found[number]} in {data!r}; the server got {seen}"
            )


@dataclass
class Answer:
    """An answer as a client reads it; chunks are no part of it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    complete: bool = False


def read_answers(outcome: Outcome, requests: list[Seen]) -> list[Answer]:
    """What the client got to these requests. Fails where h11 can't read it, unless it was cut off on purpose."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(outcome.to_client)
    if outcome.closed:
        client.receive_data(b"")
    found: list[Answer] = []
    for method in [*(seen.method for seen in requests), b"GET"]:
        client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        while not (found and found[-1].complete and client.their_state is h11.DONE):
            try:
                event = client.next_event()
            except h11.RemoteProtocolError:
                # Cut off inside an answer on purpose, or, as nothing came for this request, at its begin.
                assert outcome.closed == "abort" or client.their_state is h11.ERROR, outcome
                return found
            if isinstance(event, (h11.Response, h11.InformationalResponse)):
                found.append(Answer(event.status_code, list(event.headers)))
            elif isinstance(event, h11.Data):
                found[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found[-1].complete = True
            else:
                return found
        if client.their_state is not h11.DONE:
            return found
        client.start_next_cycle()
    return found


def same(one: Outcome, other: Outcome) -> None:
    """Both runs came to the same, as a client and a server can tell.

    Chunks may be cut elsewhere. Where a message turns out to be broken, less or more of what stood before the fault may
    have gone on by then, and an answer of which nothing had gone on becomes a 502 instead of a cut.
    """
    assert [seen for seen in one.requests if seen.complete] == [seen for seen in other.requests if seen.complete]
    assert [ended.split("@")[0] for _, ended in one.endings] == [ended.split("@")[0] for _, ended in other.endings]
    requests = max(one.requests, other.requests, key=len)
    first, second = (read_answers(outcome, requests) for outcome in (one, other))
    if all(ended == "ok" or ended.startswith("client-") for _, ended in one.endings):
        assert first == second
        assert one.endings == other.endings
        assert one.closed == other.closed
    else:
        refused = any(answer.status == 502 for answer in first + second)
        assert one.closed == other.closed == "abort" or refused or first == second


@given(streams)
def test_other_parsers_read_the_same_requests(data: bytes) -> None:
    agree(data, Rig().client(data))


@given(streams, CUTS)
def test_any_split_gives_the_same(data: bytes, cuts: list[int]) -> None:
    same(Rig(split=cut(cuts)).client(data), Rig().client(data))


@pytest.mark.parametrize("data", REQUESTS, ids=range(len(REQUESTS)))
def test_every_position_of_every_seed(data: bytes) -> None:
    once = Rig().client(data)
    for at in range(1, len(data)):
        same(Rig(split=cut([at])).client(data), once)
    same(Rig(split=cut(range(len(data)))).client(data), once)


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
@pytest.mark.parametrize("request_bytes", REQUESTS[:6], ids=range(6))
def test_every_position_of_every_answer(request_bytes: bytes, answer: bytes) -> None:
    once = Rig(answer, answer_ends=True).client(request_bytes, end=False)
    for at in range(1, min(len(answer), 200)):
        same(Rig(answer, cut([at]), answer_ends=True).client(request_bytes, end=False), once)


def test_damaged_requests() -> None:
    for number, source in seeds("requests"):
        data = mutated(source, REQUESTS)
        places = positions(source, len(data))
        try:
            outcome = Rig(split=cut(places)).client(data)
            same(outcome, Rig().client(data))
            agree(data, outcome)
        except BaseException:
            print(f"seed {number}: {data!r} cut at {places}")
            raise


def test_damaged_answers() -> None:
    for number, source in seeds("answers"):
        answer = mutated(source, ANSWERS)
        places = positions(source, len(answer))
        request = source.choice(REQUESTS[:6])
        try:
            outcome = Rig(answer, cut(places), answer_ends=True).client(request, end=False)
            same(outcome, Rig(answer, answer_ends=True).client(request, end=False))
        except BaseException:
            print(f"seed {number}: {answer!r} to {request!r} cut at {places}")
            raise


def test_the_seeds_are_understood() -> None:
    """The fuzzers begin at messages that pass, or they would only ever see refusals."""
    for data in REQUESTS:
        outcome = Rig(ANSWER).client(data)
        assert outcome.requests[0].complete, data
        assert outcome.to_client.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")), data
