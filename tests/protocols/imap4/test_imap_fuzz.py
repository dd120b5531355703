"""Whatever a client and a server say: nothing escapes, nothing leaks, and any split gives the same."""

from __future__ import annotations

import base64
import random
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from imap_rig import Imap, Rig

from l7lb.core.actions import CLIENT

PROOF = base64.b64encode(b"\0anna\0secret")
CLIENT_LINES = [
    b"a NOOP\r\n", b"a CAPABILITY\r\n", b"a STARTTLS\r\n", b"a LOGIN anna secret\r\n", b"a LOGIN ", b"\r\n",
            b"{4}\r\n", b"{4+}\r\n", b"{70000+}\r\n", b'"anna" "sec\\"ret"', b"anna secret", b"*\r\n", b"=\r\n",
            b"a AUTHENTICATE PLAIN\r\n", b"a AUTHENTICATE PLAIN " + PROOF + b"\r\n", PROOF + b"\r\n", b"a AUTHENTICATE ",
            b"a AUTHENTICATE LOGIN YW5uYQ==\r\n", b"c2VjcmV0\r\n", b'a ID ("name" "x" "x-originating-ip" "::1")\r\n',
            b"a AUTHENTICATE XOAUTH2 dXNlcj1hAWF1dGg9QmVhcmVyIHNlY3JldAEB\r\n", b"GET / HTTP/1.1\r\n", b"a LOGOUT\r\n",
]  # fmt: skip
SERVER_LINES = [
            b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2 STARTTLS ID] ready\r\n", b"* OK ready\r\n",
            b"* CAPABILITY IMAP4rev1 STARTTLS\r\nl7lb0 OK done\r\n", b"l7lb0 OK begin\r\n", b"l7lb1 OK id\r\n",
            b"l7lb2 OK [CAPABILITY IMAP4rev1] in\r\n", b"l7lb2 NO no\r\n", b"l7lb2 NO [LIMIT] no\r\n", b"+ \r\n",
            b"l7lb2 OK in\r\n", b"* BYE bye\r\n", b"* PREAUTH hi\r\n", b"* ID (\"a\" {3}\r\nabc)\r\n", b"l7lb0 BAD x\r\n",
            b"* OK [ALERT] read this\r\n",
]  # fmt: skip
READY, CONSENT = SERVER_LINES[0], b"l7lb1 OK id\r\nl7lb2 OK [CAPABILITY IMAP4rev1] in\r\n"
CLIENT_WORDS = st.one_of(st.binary(max_size=8), st.sampled_from(CLIENT_LINES))
SERVER_WORDS = st.one_of(st.binary(max_size=8), st.sampled_from(SERVER_LINES), st.none())


class Random(Imap):
    """Says the next of its words for each line that it gets."""

    def __init__(self, words: list[bytes | None]) -> None:
        super().__init__()
        self.words = list(words)
        self.heard = b""

    def greet(self) -> bytes | None:
        return self.next()

    def next(self) -> bytes | None:
        return self.words.pop(0) if self.words else b"l7lb2 NO over\r\n"

    def received(self, data: bytes) -> list[bytes | None]:
        self.heard += data
        return [self.next() for _ in range(data.count(b"\n"))]


def play(client: list[bytes], server: list[bytes | None], step: int, mode: str, server_tls: str) -> Rig:
    made = Random(server)
    rig = Rig(made, step=step, mode=mode, server_tls=server_tls, cleartext="always")
    for number, words in enumerate(client):
        for at in range(0, len(words), step):
            if rig.tunnel or rig.closed:
                break
            rig.client(words[at : at + step])
        if number == len(client) - 1 and not rig.closed:
            rig.run(rig.session.ended(CLIENT, rig.now, True))
    return rig


@settings(max_examples=300, deadline=None)
@given(
    st.lists(CLIENT_WORDS, min_size=1, max_size=12),
    st.lists(SERVER_WORDS, max_size=12),
    st.sampled_from(("implicit", "starttls")),
    st.sampled_from(("", "starttls")),
    st.integers(1, 9),
)
def test_whatever_is_said(
    client: list[bytes], server: list[bytes | None], mode: str, server_tls: str, step: int
) -> None:
    judge(client, server, mode, server_tls, step)


def test_lines_that_each_make_sense() -> None:
    dice = random.Random(4)
    tunnels = 0
    for _ in range(1500):
        client = dice.choices(CLIENT_LINES, k=dice.randint(1, 8))
        server: list[bytes | None] = list(dice.choices([*SERVER_LINES, None], k=dice.randint(0, 8)))
        secure = dice.random() < 0.5
        if dice.random() < 0.7:
            server = [READY, *([b"l7lb0 OK begin\r\n", SERVER_LINES[2]] if secure else []), *server]
        if dice.random() < 0.5:
            server.insert(dice.randint(0, len(server)), CONSENT)
        mode = dice.choice(("implicit", "starttls"))
        tunnels += judge(client, server, mode, "starttls" if secure else "", dice.randint(1, 9))
    assert 20 < tunnels < 1000


def judge(client: list[bytes], server: list[bytes | None], mode: str, server_tls: str, step: int) -> bool:
    """Play it whole and in pieces, and check what always holds; returns whether the client was logged in."""
    whole = play(client, server, 1 << 30, mode, server_tls)
    other = play(client, server, step, mode, server_tls)
    for rig in (whole, other):
        assert rig.closed
        assert rig.finished is not None
        found = [what for what, _ in rig.seen]
        assert found.count("NeedServer") == len(rig.released) == len(rig.facts)
        assert found.count("tunnel") <= 1
        assert len(rig.session.buffer) + len(rig.session.server_buffer) == 0
        if server_tls:
            assert b"AUTHENTICATE" not in rig.told.partition(b"STARTTLS\r\n")[0]
            assert b"LOGIN" not in rig.told.partition(b"STARTTLS\r\n")[0]
        assert b"BYE bye" not in rig.said
        assert not re.search(rb"l7lb[012] ", rig.said)
        assert not rig.facts or rig.facts[-1].password == b""
    if whole.tunnel:
        assert other.tunnel
        assert whole.said.startswith(other.said)  # what stands behind the consent goes past in pieces
    else:
        assert [facts.user for facts in other.facts] == [facts.user for facts in whole.facts]
        assert other.said == whole.said
        assert other.told == whole.told
    return whole.tunnel
