"""Whatever clients and servers say, in whatever pieces: nothing is lost, doubled, smuggled or cut, and nothing breaks.

What must hold of every conversation: a client is told 250 for a message only by a server that has stored exactly the
message that it sent; no server stores anything else; whatever is not stored was refused or must come again.
"""

from __future__ import annotations

from typing import Any

import pytest
from esmtp_bench import AUTH, EHLO, LOSE, Bench
from hypothesis import given
from hypothesis import strategies as st

LINES = st.sampled_from([
    b"MAIL FROM:<x@y.example>\r\n", b"MAIL FROM:<> SIZE=10 BODY=8BITMIME\r\n", b"RCPT TO:<anna@example.com>\r\n",
    b"RCPT TO:<bert@example.com>\r\n", b"RCPT TO:<axel@example.com>\r\n", b"RCPT TO:<b+1@example.com> NOTIFY=NEVER\r\n",
    b"RSET\r\n", b"NOOP\r\n", b"EHLO again\r\n", b"LHLO again\r\n", b"BDAT 0\r\n", b"BDAT 4\r\nab\r\n",
    b"BDAT 5 LAST\r\n.\r\nDA", b"DATA\r\n", b"DATA\r\n", b"VRFY x\r\n", b"RUBBISH\r\n", b"\xff\x00\r\n", b"AUTH PLAIN\r\n", b"*\r\n",
])  # fmt: skip
ORDER = st.just(
    [b"MAIL FROM:<x@y.example>\r\n", b"RCPT TO:<anna@example.com>\r\n", b"RCPT TO:<bert@example.com>\r\n", b"DATA\r\n"]
)
TEXTS = st.lists(st.sampled_from([b"a", b".", b"..", b"\r\n", b"\r\n", b"QUIT", b"\xe4", b"DATA"]), max_size=8)
BAD = st.sampled_from([b"\n", b"\r", b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r"])
FAULT = st.sampled_from([
    LOSE, b"421 4.3.2 no\r\n", b"450 4.0.0 no\r\n", b"550 5.0.0 no\r\n", b"250 2.0.0 what\r\n", b"354 what\r\n", b"rubbish\r\n",
    b"250-a\r\n550 b\r\n", b"250 a\r\n250 b\r\n", b"x" * 5000, b"250-x\r\n" * 200,
])  # fmt: skip
STEPS = [b"", b"EHLO", b"LHLO", b"MAIL", b"RCPT", b"DATA", b".", b"BDAT", b"RSET", b"QUIT", b"AUTH"]
SCRIPTS = st.dictionaries(
    st.sampled_from(STEPS), st.lists(st.one_of(FAULT, st.just(b"250 2.0.0 fine\r\n")), max_size=3), max_size=2
)


class Message:
    """What a client sends behind DATA, numbered, so that it is told from others."""

    def __init__(self, number: int, parts: list[bytes]) -> None:
        text = b"".join(parts)
        lines = [b"." + line if line.startswith(b".") else line for line in text.split(b"\r\n")]
        self.text = b"message %d\r\n" % number + b"\r\n".join(lines) + b"\r\n"


def check(bench: Bench, messages: list[Message]) -> None:
    """What must hold."""
    texts = {one.text for one in messages}
    for server in bench.servers:
        for stored in server.messages:
            assert stored in texts or (b"BDAT" in b"".join(server.commands) and stored in CHUNKS)
        if server.mode == "data":
            assert server.end in ("reset", "closed") or not bench.closed


CHUNKS = {b"ab\r\n" * count + b".\r\nDA" for count in range(30)}


@given(
    st.sampled_from(["smtp", "lmtp", "submission"]),
    st.lists(st.one_of(LINES.map(lambda line: [line]), ORDER), max_size=10),
    st.lists(TEXTS, min_size=10, max_size=10),
    st.dictionaries(st.sampled_from(["a", "b"]), SCRIPTS, max_size=2),
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.booleans(),
)
def test_any_conversation(
    protocol: str,
    groups: list[list[bytes]],
    texts: list[list[bytes]],
    scripts: dict[str, dict[bytes, Any]],
    sizes: list[int],
    learned: bool,
) -> None:
    scripts = {name: dict(scripts.get(name, {})) for name in ("a", "b")}
    for script in scripts.values():
        script.setdefault(b"EHLO", AUTH)
    bench = Bench(protocol, scripts=scripts, settings={"bad_commands": 50})
    if learned:
        learn(bench, protocol)
    hello = {"lmtp": b"LHLO x\r\n"}.get(protocol, b"EHLO x\r\n")
    if protocol == "submission":
        hello += b"AUTH PLAIN AGFubmEAeA==\r\n"
    bench.send(hello)
    messages = [Message(number, parts) for number, parts in enumerate(texts)]
    left = list(messages)
    for line in (line for group in groups for line in group):
        said = bench.split(line, sizes)
        assert not said or said.endswith(b"\r\n")
        if said.startswith(b"354"):
            message = left.pop(0) if left else messages[-1]
            answer = bench.split(message.text + b".\r\n", sizes)
            stored = sum(server.messages.count(message.text) for server in bench.servers)
            thanked = sum(b"stored by" in each for each in answer.split(b"\r\n"))
            assert thanked <= max(stored, 1) * 30
            if thanked:
                assert stored
            assert answer, "a message has an answer"
    check(bench, messages)
    bench.gone()
    assert bench.closed
    check(bench, messages)


def learn(bench: Bench, protocol: str) -> None:
    """Have both servers asked, whatever they answer."""
    hello = {"lmtp": b"LHLO x\r\n"}.get(protocol, b"EHLO x\r\n")
    bench.send(
        hello
        + b"MAIL FROM:<x@y>\r\nRCPT TO:<a@example.com>\r\nRSET\r\nMAIL FROM:<x@y>\r\nRCPT TO:<b@example.com>\r\nQUIT\r\n"
    )
    bench.begin()


@given(
    st.sampled_from(["smtp", "lmtp", "submission"]),
    TEXTS,
    BAD,
    TEXTS,
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_nothing_is_smuggled(
    protocol: str, before: list[bytes], bad: bytes, after: list[bytes], sizes: list[int]
) -> None:
    scripts = {name: {b"EHLO": AUTH, b"LHLO": EHLO} for name in ("a", "b")}
    bench = Bench(protocol, scripts=scripts)
    bench.send({"lmtp": b"LHLO x\r\n"}.get(protocol, b"EHLO x\r\n"))
    bench.send(b"AUTH PLAIN AGFubmEAeA==\r\n" if protocol == "submission" else b"")
    bench.send(b"MAIL FROM:<x@y.example>\r\nRCPT TO:<anna@example.com>\r\nRCPT TO:<bert@example.com>\r\n")
    assert bench.codes(bench.send(b"DATA\r\n")) == [b"354"]
    evil = b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<anna@example.com>\r\nDATA\r\nevil\r\n.\r\n"
    text = Message(0, before).text[:-2] + b"x" + bad + b"x" + b"".join(after) + evil
    bench.split(text, sizes)
    lone = _lone(text)
    for server in bench.servers:
        assert not any(b"evil" in command for command in server.commands)
        if lone:
            assert all(b"x" + bad not in stored for stored in server.messages)
            assert len(server.messages) <= 1
    if lone:
        assert bench.closed


def _lone(text: bytes) -> bool:
    """Whether there is a lone CR or LF before the first end."""
    end = (b"\r\n" + text).find(b"\r\n.\r\n")
    part = text[: end + 3] if end >= 0 else text
    rest = part.replace(b"\r\n", b"")
    return b"\r" in rest or b"\n" in rest


@pytest.mark.parametrize("protocol", ["smtp", "lmtp", "submission"])
@given(st.binary(max_size=400), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_rubbish_breaks_nothing(protocol: str, rubbish: bytes, sizes: list[int]) -> None:
    bench = Bench(protocol)
    said = bench.split(rubbish + b"\r\n", sizes)
    assert all(line[:3].isdigit() for line in said.split(b"\r\n") if line)
    whole = Bench(protocol)
    assert whole.send(rubbish + b"\r\n") == said
    bench.gone()
    assert bench.closed
